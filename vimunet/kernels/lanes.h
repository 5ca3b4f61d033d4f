// Vectors of kLanes float32 numbers and the functions that the kernels need of them. Compiled once
// per instruction set, see `instruction_set.cpp`.


#define INLINE inline __attribute__((always_inline))

constexpr int kLanes = VIMUNET_LANES;
typedef float Float __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Int __attribute__((vector_size(kLanes * sizeof(float))));
typedef uint32_t Unsigned __attribute__((vector_size(kLanes * sizeof(float))));
typedef uint16_t Short __attribute__((vector_size(kLanes * sizeof(uint16_t))));

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;

INLINE int64_t least(int64_t x, int64_t y) { return x < y ? x : y; }
INLINE int64_t greatest(int64_t x, int64_t y) { return x > y ? x : y; }
INLINE int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

template <class To, class From>
INLINE To bits_of(From x) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To y;
  std::memcpy(&y, &x, sizeof(y));
  return y;
}

INLINE float to_float(float x) { return x; }
INLINE float to_float(BFloat16 x) { return bits_of<float>(static_cast<uint32_t>(x.bits) << 16); }

INLINE Float load(const float* from) {
  Float x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}
INLINE Float load(const BFloat16* from) {
  Short x;
  std::memcpy(&x, from, sizeof(x));
  return bits_of<Float>(__builtin_convertvector(x, Unsigned) << 16);
}

INLINE void store(float* to, Float x) { std::memcpy(to, &x, sizeof(x)); }
// Rounds to the nearest, ties to even; NaN stays NaN.
INLINE void store(BFloat16* to, Float x) {
  const Unsigned bits = bits_of<Unsigned>(x);
  Unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  rounded = x == x ? rounded : (bits >> 16) | 0x40u;
  const Short narrow = __builtin_convertvector(rounded, Short);
  std::memcpy(to, &narrow, sizeof(narrow));
}

// The first `count` lanes only, if there are fewer than kLanes.
template <class T>
INLINE Float load(const T* from, int64_t count) {
  if (count >= kLanes) return load(from);
  Float x{};
  for (int64_t i = 0; i < count; ++i) x[i] = to_float(from[i]);
  return x;
}
template <class T>
INLINE void store(T* to, Float x, int64_t count) {
  if (count >= kLanes) return store(to, x);
  T all[kLanes];
  store(all, x);
  std::memcpy(to, all, count * sizeof(T));
}

// A row of `count` floats for reading; bfloat16 is converted into `buffer`.
INLINE const float* as_floats(const float* row, int64_t, float*) { return row; }
INLINE const float* as_floats(const BFloat16* row, int64_t count, float* buffer) {
  for (int64_t i = 0; i < count; i += kLanes) store(buffer + i, load(row + i, count - i), count - i);
  return buffer;
}

INLINE float sum(Float x) {
  float total[kLanes];
  store(total, x);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) total[i] += total[i + half];
  }
  return total[0];
}

// NaN in x stays NaN.
INLINE Float maximum(Float x, Float y) { return y > x ? y : x; }
INLINE Float minimum(Float x, Float y) { return y < x ? y : x; }

// 2^(x * a), with a relative error of 1.5e-7 of its own. The exponent is split into an integer, which
// becomes the exponent of the result, and a fraction in [-1/2, 1/2], whose power of 2 is
// 1 + fraction * (a minimax polynomial). Results below 2^-126 are 0. Right for -2e8 < x * a < 127.
INLINE Float exp2_of(Float x, Float a) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: added, it leaves the nearest integer
#if defined(__AVX512F__)
  const Float whole = (x * a + kRound) - kRound;
#else
  // The nearest integer plus the bias 127 of the exponent, in the lowest bits.
  const Float rounded = x * a + (kRound + 127.0f);
  const Float whole = rounded - (kRound + 127.0f);
  Int power = bits_of<Int>(rounded);
  const Int lowest = Int{} + 0x4b400000;  // the bits of kRound
  power = (power > lowest ? power : lowest) << 23;
#endif
  const Float fraction = x * a - whole;
  Float q = fraction * 0.001326472731307149f + 0.009671512991189957f;
  q = q * fraction + 0.05550733581185341f;
  q = q * fraction + 0.24022242426872253f;
  q = q * fraction + 0.6931470036506653f;
  q = q * fraction + 1.0f;
#if defined(__AVX512F__)
  return (Float)_mm512_scalef_ps((__m512)q, (__m512)whole);
#else
  return q * bits_of<Float>(power);
#endif
}

INLINE Float exp_of(Float x) { return exp2_of(minimum(x, Float{} + 87.0f), Float{} + kLog2E); }

// log(1 + exp(x)); log(1 + t) / t is a minimax polynomial of relative error 3e-8 on [0, 1].
INLINE Float softplus(Float x) {
  const Float t = exp_of(-maximum(x, -x));
  Float p = t * 0.005232676863670349f - 0.02950516901910305f;
  p = p * t + 0.07822583615779877f;
  p = p * t - 0.13663236796855927f;
  p = p * t + 0.19106002151966095f;
  p = p * t - 0.2484298050403595f;
  p = p * t + 0.3331909775733948f;
  p = p * t - 0.4999949336051941f;
  p = p * t + 0.9999999403953552f;
  return maximum(x, Float{}) + p * t;
}

INLINE Float sigmoid(Float x) {
  const Float one_plus = 1.0f + exp_of(-x);
#if defined(__AVX512F__)  // division takes as long as 16 products; this is exact to the last bit or two
  const Float guess = (Float)_mm512_rcp14_ps((__m512)one_plus);
  return guess * (2.0f - one_plus * guess);
#else
  return 1.0f / one_plus;
#endif
}
