// The selective scan on the CPU, forward and backward: the compiled twin of
// `vimunet.models.scan.selective_scan_reference`, in float32.
//
// Axis letters: b images, l tokens, d channels, n states. The recurrence of one channel,
//
//     h[t] = exp(delta[t] * A) * h[t-1] + delta[t] * u[t] * B[t]
//     y[t] = sum over n of (C[t] * h[t]) + D * u[t],
//
// is sequential in t and independent between channels. So W neighbouring channels share one vector
// register, W being the width of the registers, and threads share the blocks of W channels.
// The backward pass keeps the states at every kChunk-th token only and recomputes the others.
//
// This file knows nothing of Python objects; `bindings.cpp` does.

#include "selective_scan.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <vector>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif
#if defined(_OPENMP)
#include <omp.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace vimunet {
namespace {

template <int W>
struct Lanes {
  typedef float Float __attribute__((vector_size(W * sizeof(float))));
  typedef int32_t Int __attribute__((vector_size(W * sizeof(float))));
};
template <int W>
using Float = typename Lanes<W>::Float;

// Widest registers for which this file holds code; scratch memory is counted in these.
constexpr int kWidest = 16;
struct alignas(kWidest * sizeof(float)) Line {
  float values[kWidest];
};

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;

// Takes numbers below the normal range of float32 for 0 while it lives; x86 computes with them tens
// of times slower, and states that fade away pass through them.
class FlushDenormals {
 public:
#if defined(__SSE2__)
  FlushDenormals() : mode_(_mm_getcsr()) { _mm_setcsr(mode_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(mode_); }

 private:
  unsigned mode_;
#endif
};

template <int W>
INLINE Float<W> load(const float* from, int64_t count) {
  Float<W> x{};
  if (count == W) {
    std::memcpy(&x, from, sizeof(x));
  } else {
    for (int64_t i = 0; i < count; ++i) x[i] = from[i];
  }
  return x;
}

template <int W>
INLINE void store(float* to, Float<W> x, int64_t count) {
  if (count == W) {
    std::memcpy(to, &x, sizeof(x));
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = x[i];
  }
}

// Sum of the lanes, in pairs.
template <int W>
INLINE float sum(Float<W> x) {
  if constexpr (W == 1) {
    return x[0];
  } else {
    Float<W / 2> low, high;
    std::memcpy(&low, &x, sizeof(low));
    std::memcpy(&high, reinterpret_cast<const char*>(&x) + sizeof(low), sizeof(high));
    return sum<W / 2>(low + high);
  }
}

// exp(delta * A), given a = A * log2(e), with a relative error of 1.5e-7 of its own. The exponent
// delta * a is split into an integer, which becomes the exponent of the result, and a fraction in
// [-1/2, 1/2], whose power of 2 is 1 + fraction * (a minimax polynomial). Results below 2^-126 are 0.
// Right for -kLargest < delta * a < 127.
constexpr float kLargest = 2e8f;

template <int W>
INLINE Float<W> decay_of(Float<W> delta, Float<W> a) {
  using Int = typename Lanes<W>::Int;
  // Added to a number below 2^22 it leaves the nearest integer, plus the bias 127 of the exponent,
  // in the lowest bits.
  constexpr float kRound = 12582912.0f + 127.0f;  // 1.5 * 2^23 + 127
  constexpr int32_t kRoundLowest = 0x4b400000;    // the bits of kRound - 127
  const Float<W> rounded = delta * a + kRound;
  Int bits;
  std::memcpy(&bits, &rounded, sizeof(bits));
  const Int lowest = Int{} + kRoundLowest;
  bits = bits > lowest ? bits : lowest;
  const Float<W> fraction = delta * a - (rounded - kRound);
  bits <<= 23;
  Float<W> power;
  std::memcpy(&power, &bits, sizeof(power));
  Float<W> q = fraction * 0.001326472731307149f + 0.009671512991189957f;
  q = q * fraction + 0.05550733581185341f;
  q = q * fraction + 0.24022242426872253f;
  q = q * fraction + 0.6931470036506653f;
  return (q * fraction + 1.0f) * power;
}

// Transpose the rows of A of one block to (n, W), times log2(e).
template <int W>
INLINE void load_rates(const Scan& scan, int64_t first, int64_t count, Float<W>* a) {
  for (int64_t j = 0; j < scan.states; ++j) {
    a[j] = Float<W>{};
    for (int64_t i = 0; i < count; ++i) a[j][i] = scan.A[(first + i) * scan.states + j] * kLog2E;
  }
}

INLINE int64_t token_of(const Scan& scan, int64_t step) {
  return scan.reverse ? scan.length - 1 - step : step;
}

// Where in `borders` the states (W, n) of one block before one chunk are.
INLINE int64_t border_at(const Scan& scan, int64_t chunk, int64_t image, int64_t first) {
  return ((chunk * scan.batch + image) * scan.channels + first) * scan.states;
}

// N states if N > 0, else `scan.states`.
template <int W, int N>
INLINE void forward_block(const Scan& scan, int64_t image, int64_t block, Line* scratch, float* y,
                          float* borders) {
  using F = Float<W>;
  const int64_t states = N ? N : scan.states;
  const int64_t first = block * W, count = std::min<int64_t>(W, scan.channels - first);
  F* __restrict a = reinterpret_cast<F*>(scratch);
  F* __restrict h = a + states;
  load_rates<W>(scan, first, count, a);
  for (int64_t j = 0; j < states; ++j) h[j] = F{};
  const F skip = load<W>(scan.D + first, count);
  for (int64_t step = 0; step < scan.length; ++step) {
    if (borders && step % kChunk == 0) {
      float* border = borders + border_at(scan, step / kChunk, image, first);
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t j = 0; j < states; ++j) border[i * states + j] = h[j][i];
      }
    }
    const int64_t row = image * scan.length + token_of(scan, step);
    const int64_t at = row * scan.channels + first;
    const float* __restrict b = scan.B + row * states;
    const float* __restrict c = scan.C + row * states;
    const F delta = load<W>(scan.delta + at, count), u = load<W>(scan.u + at, count);
    const F input = delta * u;
    F out = skip * u;
    for (int64_t j = 0; j < states; ++j) {
      h[j] = decay_of<W>(delta, a[j]) * h[j] + input * b[j];
      out += h[j] * c[j];
    }
    store<W>(y + at, out, count);
  }
}

// The blocks [begin, end) of one image, chunk by chunk against the direction of the scan. The sums
// over channels (gradients of B and C) run over the lanes of the blocks first.
template <int W, int N>
INLINE void backward_blocks(const Scan& scan, int64_t image, int64_t begin, int64_t end,
                            Line* scratch, const float* grad_y, const float* borders,
                            const Gradients& grad) {
  using F = Float<W>;
  const int64_t states = N ? N : scan.states, blocks = end - begin;
  F* __restrict all_a = reinterpret_cast<F*>(scratch);
  F* __restrict all_carry = all_a + blocks * states;   // gradient of the state, from later steps
  F* __restrict all_grad_a = all_carry + blocks * states;
  F* __restrict grad_skip = all_grad_a + blocks * states;
  F* __restrict h = grad_skip + blocks;  // before each step of the chunk, and after the last
  F* __restrict decays = h + (kChunk + 1) * states;
  F* __restrict sums_B = decays + kChunk * states;
  F* __restrict sums_C = sums_B + kChunk * states;
  for (int64_t k = 0; k < blocks; ++k) {
    const int64_t first = (begin + k) * W, count = std::min<int64_t>(W, scan.channels - first);
    load_rates<W>(scan, first, count, all_a + k * states);
    for (int64_t j = 0; j < states; ++j) {
      all_carry[k * states + j] = all_grad_a[k * states + j] = F{};
    }
    grad_skip[k] = F{};
  }
  for (int64_t chunk = (scan.length - 1) / kChunk; chunk >= 0; --chunk) {
    const int64_t start = chunk * kChunk, steps = std::min(kChunk, scan.length - start);
    for (int64_t i = 0; i < steps * states; ++i) sums_B[i] = sums_C[i] = F{};
    for (int64_t k = 0; k < blocks; ++k) {
      const int64_t first = (begin + k) * W, count = std::min<int64_t>(W, scan.channels - first);
      const F* __restrict a = all_a + k * states;
      F* __restrict carry = all_carry + k * states;
      F* __restrict grad_a = all_grad_a + k * states;
      const float* border = borders + border_at(scan, chunk, image, first);
      for (int64_t j = 0; j < states; ++j) {
        h[j] = F{};
        for (int64_t i = 0; i < count; ++i) h[j][i] = border[i * states + j];
      }
      for (int64_t step = 0; step < steps; ++step) {
        const int64_t row = image * scan.length + token_of(scan, start + step);
        const int64_t at = row * scan.channels + first;
        const float* __restrict b = scan.B + row * states;
        const F delta = load<W>(scan.delta + at, count), u = load<W>(scan.u + at, count);
        const F input = delta * u;
        F* __restrict decay = decays + step * states;
        const F* before = h + step * states;
        F* after = h + (step + 1) * states;
        for (int64_t j = 0; j < states; ++j) {
          decay[j] = decay_of<W>(delta, a[j]);
          after[j] = decay[j] * before[j] + input * b[j];
        }
      }
      const F skip = load<W>(scan.D + first, count);
      for (int64_t step = steps - 1; step >= 0; --step) {
        const int64_t row = image * scan.length + token_of(scan, start + step);
        const int64_t at = row * scan.channels + first;
        const float* __restrict b = scan.B + row * states;
        const float* __restrict c = scan.C + row * states;
        const F delta = load<W>(scan.delta + at, count), u = load<W>(scan.u + at, count);
        const F grad_out = load<W>(grad_y + at, count);
        const F input = delta * u;
        const F* __restrict decay = decays + step * states;
        const F* __restrict before = h + step * states;
        const F* __restrict after = h + (step + 1) * states;
        F* __restrict sum_B = sums_B + step * states;
        F* __restrict sum_C = sums_C + step * states;
        F grad_input{}, grad_log2{};
        for (int64_t j = 0; j < states; ++j) {
          const F g = carry[j] + grad_out * c[j];
          sum_C[j] += grad_out * after[j];
          sum_B[j] += g * input;
          grad_input += g * b[j];
          carry[j] = decay[j] * g;
          const F grad_exponent = carry[j] * before[j];
          grad_a[j] += grad_exponent * delta;
          grad_log2 += grad_exponent * a[j];
        }
        grad_skip[k] += grad_out * u;
        store<W>(grad.u + at, grad_input * delta + skip * grad_out, count);
        store<W>(grad.delta + at, grad_input * u + grad_log2 * kLn2, count);
      }
    }
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t row = image * scan.length + token_of(scan, start + step);
      for (int64_t j = 0; j < states; ++j) {
        grad.B[row * states + j] = sum<W>(sums_B[step * states + j]);
        grad.C[row * states + j] = sum<W>(sums_C[step * states + j]);
      }
    }
  }
  for (int64_t k = 0; k < blocks; ++k) {
    const int64_t first = (begin + k) * W, count = std::min<int64_t>(W, scan.channels - first);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t channel = image * scan.channels + first + i;
      for (int64_t j = 0; j < states; ++j) {
        grad.A[channel * states + j] = all_grad_a[k * states + j][i];
      }
      grad.D[channel] = grad_skip[k][i];
    }
  }
}

// One pair of functions per instruction set. 16 states, as in every Vim, get code of their own.
struct Kernels {
  int width;
  void (*forward)(const Scan&, int64_t image, int64_t block, Line*, float* y, float* borders);
  void (*backward)(const Scan&, int64_t image, int64_t begin, int64_t end, Line*,
                   const float* grad_y, const float* borders, const Gradients&);
};

#define DEFINE_KERNELS(NAME, W, TARGET)                                                          \
  TARGET void forward_##NAME(const Scan& scan, int64_t image, int64_t block, Line* scratch,      \
                             float* y, float* borders) {                                         \
    if (scan.states == 16) {                                                                     \
      forward_block<W, 16>(scan, image, block, scratch, y, borders);                             \
    } else {                                                                                     \
      forward_block<W, 0>(scan, image, block, scratch, y, borders);                              \
    }                                                                                            \
  }                                                                                              \
  TARGET void backward_##NAME(const Scan& scan, int64_t image, int64_t begin, int64_t end,       \
                              Line* scratch, const float* grad_y, const float* borders,                \
                              const Gradients& grad) {                                           \
    if (scan.states == 16) {                                                                     \
      backward_blocks<W, 16>(scan, image, begin, end, scratch, grad_y, borders, grad);           \
    } else {                                                                                     \
      backward_blocks<W, 0>(scan, image, begin, end, scratch, grad_y, borders, grad);            \
    }                                                                                            \
  }

DEFINE_KERNELS(plain, 4, )
#if defined(__x86_64__)
DEFINE_KERNELS(avx2, 8, __attribute__((target("avx2,fma"))))
DEFINE_KERNELS(avx512, 16, __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,fma"))))
#endif

// The functions for this processor, widest registers first.
const std::vector<Kernels>& kernels() {
  static const std::vector<Kernels> available = [] {
    std::vector<Kernels> found;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) {
      found.push_back({16, forward_avx512, backward_avx512});
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      found.push_back({8, forward_avx2, backward_avx2});
    }
#endif
    found.push_back({4, forward_plain, backward_plain});
    return found;
  }();
  return available;
}

const Kernels& kernels_of(int width) {
  for (const Kernels& kernel : kernels()) {
    if (kernel.width == width) return kernel;
  }
  throw std::invalid_argument("`width` must be one of `WIDTHS`.");
}

int thread_number() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

int64_t divide_up(int64_t x, int64_t by) { return (x + by - 1) / by; }

// sum[i] = parts[0][i] + parts[1][i] + ..., in this order.
void add_parts(const std::vector<float>& parts, int64_t count, int64_t size, float* sum) {
  std::copy_n(parts.data(), size, sum);
  for (int64_t part = 1; part < count; ++part) {
    for (int64_t i = 0; i < size; ++i) sum[i] += parts[part * size + i];
  }
}

}  // namespace

std::vector<int> widths() {
  std::vector<int> all;
  for (const Kernels& kernel : kernels()) all.push_back(kernel.width);
  return all;
}

void forward(const Scan& scan, float* y, float* borders, int threads, int width) {
  const Kernels& kernel = kernels_of(width);
  const int64_t blocks = divide_up(scan.channels, kernel.width), units = scan.batch * blocks;
  threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, units)));
  const int64_t lines = 2 * scan.states;
  std::vector<Line> scratch(threads * lines);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    [[maybe_unused]] const FlushDenormals flush;
    Line* own = scratch.data() + thread_number() * lines;
#pragma omp for schedule(dynamic)
    for (int64_t unit = 0; unit < units; ++unit) {
      kernel.forward(scan, unit / blocks, unit % blocks, own, y, borders);
    }
  }
}

void backward(const Scan& scan, const float* grad_y, const float* borders, const Gradients& grad,
              int threads, int width) {
  const Kernels& kernel = kernels_of(width);
  const int64_t blocks = divide_up(scan.channels, kernel.width);
  // As few groups of blocks as keep all threads busy: each group sums the gradients of B and C.
  const int64_t groups = std::max<int64_t>(
      1, std::min(blocks, threads / std::gcd<int64_t>(threads, std::max<int64_t>(1, scan.batch))));
  const int64_t units = scan.batch * groups;
  threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, units)));

  const int64_t lines = divide_up(blocks, groups) * (3 * scan.states + 1) +
                        (4 * kChunk + 1) * scan.states;
  std::vector<Line> scratch(threads * lines);
  const int64_t size_A = scan.channels * scan.states;
  const int64_t size_B = scan.batch * scan.length * scan.states;
  std::vector<float> A(scan.batch * size_A), D(scan.batch * scan.channels);
  std::vector<float> B(groups * size_B), C(groups * size_B);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    [[maybe_unused]] const FlushDenormals flush;
    Line* own = scratch.data() + thread_number() * lines;
#pragma omp for schedule(dynamic)
    for (int64_t unit = 0; unit < units; ++unit) {
      const int64_t group = unit % groups;
      const Gradients part{grad.u, grad.delta, A.data(), B.data() + group * size_B,
                           C.data() + group * size_B, D.data()};
      kernel.backward(scan, unit / groups, group * blocks / groups, (group + 1) * blocks / groups,
                      own, grad_y, borders, part);
    }
  }
  add_parts(A, scan.batch, size_A, grad.A);
  add_parts(D, scan.batch, scan.channels, grad.D);
  add_parts(B, groups, size_B, grad.B);
  add_parts(C, groups, size_B, grad.C);
}

}  // namespace vimunet
