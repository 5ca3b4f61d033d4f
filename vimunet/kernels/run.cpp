// Runs the kernels: chooses the instruction set, shares the work among threads, adds up what they
// computed in parts. Results do not depend on the number of threads, but for the order of sums.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <vector>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "kernels.h"

namespace vimunet {
namespace {

constexpr int64_t kWidest = 16;     // lanes of the widest instruction set
constexpr int64_t kConvTokens = 64;    // tokens that one thread convolves at a time
constexpr int64_t kNormPart = 1 << 14;  // pixels of an image that one thread sums up at a time

// The instruction sets of this processor, widest registers first.
const std::vector<const Kernels*>& available() {
  static const std::vector<const Kernels*> found = [] {
    std::vector<const Kernels*> all;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) {
      all.push_back(&avx512_kernels);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      all.push_back(&avx2_kernels);
    }
#endif
    all.push_back(&plain_kernels);
    return all;
  }();
  return found;
}

const Kernels& kernels_of(int width) {
  for (const Kernels* kernels : available()) {
    if (kernels->lanes == width) return *kernels;
  }
  throw std::invalid_argument("`width` must be one of `WIDTHS`.");
}

template <class T>
const Functions<T>& functions_of(int width);
template <>
const Functions<float>& functions_of(int width) {
  return kernels_of(width).float32;
}
template <>
const Functions<BFloat16>& functions_of(int width) {
  return kernels_of(width).bfloat16;
}

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

// Memory for each thread, aligned to the widest registers.
class Scratch {
 public:
  Scratch(int threads, int64_t floats)
      : each_((floats + kWidest - 1) / kWidest * kWidest),
        memory_(static_cast<float*>(
            std::aligned_alloc(kWidest * sizeof(float), threads * each_ * sizeof(float) + 64))) {
    if (!memory_) throw std::bad_alloc();
  }
  float* of(int thread) const { return memory_.get() + thread * each_; }

 private:
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  int64_t each_;
  std::unique_ptr<float, Free> memory_;
};

int64_t divide_up(int64_t x, int64_t by) { return (x + by - 1) / by; }

int usable(int threads, int64_t units) {
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, units)));
}

// Calls work(unit, thread) for each unit of [0, units), shared among threads.
template <class Work>
void share(int64_t units, int threads, const Work& work) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    [[maybe_unused]] const FlushDenormals flush;
#if defined(_OPENMP)
    const int thread = omp_get_thread_num();
#else
    const int thread = 0;
#endif
#pragma omp for schedule(dynamic)
    for (int64_t unit = 0; unit < units; ++unit) work(unit, thread);
  }
}

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
  for (const Kernels* kernels : available()) all.push_back(kernels->lanes);
  return all;
}

int64_t border_size(int64_t scans, int64_t batch, int64_t length, int64_t channels, int64_t states,
                    int width) {
  return scans * divide_up(length, kChunk) * batch * divide_up(channels, width) * width * states;
}

template <class T>
void scan_forward(const Scan<T>& scan, T* y, float* sum, float* borders, int threads, int width) {
  const Functions<T>& functions = functions_of<T>(width);
  const int64_t blocks = divide_up(scan.channels, width), units = scan.batch * blocks;
  threads = usable(threads, units);
  int64_t floats = 2 * scan.states * width + 2 * (scan.states + kWidest);
  if (!sum && scan.scans > 1) floats += scan.length * width;
  const Scratch scratch(threads, floats);
  share(units, threads, [&](int64_t unit, int thread) {
    functions.scan_forward(scan, unit / blocks, unit % blocks, scratch.of(thread), y, sum, borders);
  });
}

template <class T>
void scan_backward(const Scan<T>& scan, const ScanGradients<T>& grad, int threads, int width) {
  const Functions<T>& functions = functions_of<T>(width);
  const int64_t blocks = divide_up(scan.channels, width);
  // As few groups of blocks as keep all threads busy: each group sums the gradients of B and C.
  const int64_t groups = std::max<int64_t>(
      1, std::min(blocks, threads / std::gcd<int64_t>(threads, std::max<int64_t>(1, scan.batch))));
  const int64_t units = scan.batch * groups;
  threads = usable(threads, units);
  const int64_t vectors = divide_up(blocks, groups) * (3 * scan.states + 2) +
                          (4 * kChunk + 1) * scan.states + kChunk;
  const Scratch scratch(threads, vectors * width + 2 * (scan.states + kWidest));
  const int64_t size_D = scan.scans * scan.channels, size_A = size_D * scan.states;
  const int64_t size_B = scan.scans * scan.batch * scan.length * scan.states;
  std::vector<float> A(scan.batch * size_A), D(scan.batch * size_D), bias(scan.batch * size_D);
  std::vector<float> B(groups * size_B), C(groups * size_B);
  share(units, threads, [&](int64_t unit, int thread) {
    const int64_t group = unit % groups;
    ScanGradients<T> part = grad;
    part.A = A.data(), part.D = D.data(), part.bias = grad.bias ? bias.data() : nullptr;
    part.B = B.data() + group * size_B, part.C = C.data() + group * size_B;
    functions.scan_backward(scan, unit / groups, group * blocks / groups,
                            (group + 1) * blocks / groups, scratch.of(thread), part);
  });
  add_parts(A, scan.batch, size_A, grad.A);
  add_parts(D, scan.batch, size_D, grad.D);
  if (grad.bias) add_parts(bias, scan.batch, size_D, grad.bias);
  add_parts(B, groups, size_B, grad.B);
  add_parts(C, groups, size_B, grad.C);
}

template <class T>
void convolve(const Convolution<T>& conv, T* y, int threads, int width) {
  const Functions<T>& functions = functions_of<T>(width);
  const int64_t tiles = divide_up(conv.length, kConvTokens);
  const int64_t units = conv.scans * conv.batch * tiles;
  share(units, usable(threads, units), [&](int64_t unit, int) {
    const int64_t begin = unit % tiles * kConvTokens, image = unit / tiles % conv.batch;
    functions.convolve(conv, unit / tiles / conv.batch, image, begin,
                       std::min(begin + kConvTokens, conv.length), y);
  });
}

template <class T>
void convolve_backward(const Convolution<T>& conv, const T* grad_y, T* grad_signal,
                       float* grad_weight, float* grad_bias, int threads, int width) {
  const Functions<T>& functions = functions_of<T>(width);
  const int64_t tiles = divide_up(conv.length, kConvTokens), units = conv.batch * tiles;
  threads = usable(threads, units);
  const Scratch scratch(threads, (2 * kConvTokens + 2 * conv.taps) * conv.channels);
  const int64_t size = conv.scans * conv.channels;
  std::vector<float> weight(threads * size * conv.taps), bias(threads * size);
  share(units, threads, [&](int64_t unit, int thread) {
    const int64_t begin = unit % tiles * kConvTokens;
    functions.convolve_backward(conv, unit / tiles, begin,
                                std::min(begin + kConvTokens, conv.length), scratch.of(thread),
                                grad_y, grad_signal, weight.data() + thread * size * conv.taps,
                                bias.data() + thread * size);
  });
  add_parts(weight, threads, size * conv.taps, grad_weight);
  add_parts(bias, threads, size, grad_bias);
}

template <class T>
void instance_norm(const Stack<T>& stack, double eps, float* scale, float* shift, T* y, int threads,
                   int width) {
  const Functions<T>& functions = functions_of<T>(width);
  const int64_t parts = divide_up(stack.pixels, kNormPart), units = stack.batch * parts;
  const int64_t channels = stack.channels;
  threads = usable(threads, units);
  std::vector<double> means(units * channels), squares(units * channels);
  const auto begin = [&](int64_t unit) { return unit % parts * kNormPart; };
  const auto end = [&](int64_t unit) { return std::min(begin(unit) + kNormPart, stack.pixels); };
  share(units, threads, [&](int64_t unit, int) {
    functions.moments(stack, unit / parts, begin(unit), end(unit), &means[unit * channels],
                      &squares[unit * channels]);
  });
  for (int64_t image = 0; image < stack.batch; ++image) {
    for (int64_t c = 0; c < channels; ++c) {
      double count = 0, mean = 0, square = 0;
      for (int64_t unit = image * parts; unit < (image + 1) * parts; ++unit) {
        const double own = static_cast<double>(end(unit) - begin(unit));
        const double apart = means[unit * channels + c] - mean;
        square += squares[unit * channels + c] + apart * apart * count * own / (count + own);
        mean += apart * own / (count + own);
        count += own;
      }
      const double factor = 1 / std::sqrt(square / count + eps);
      scale[image * channels + c] = static_cast<float>(factor);
      shift[image * channels + c] = static_cast<float>(-mean * factor);
    }
  }
  share(units, threads, [&](int64_t unit, int) {
    const int64_t image = unit / parts;
    functions.normalize(stack, image, begin(unit), end(unit), scale + image * channels,
                        shift + image * channels, y);
  });
}

template <class T>
void instance_norm_backward(const Stack<T>& stack, const float* scale, const float* shift,
                            const T* grad_y, T* const* grads, int threads, int width) {
  const Functions<T>& functions = functions_of<T>(width);
  const int64_t parts = divide_up(stack.pixels, kNormPart), units = stack.batch * parts;
  const int64_t channels = stack.channels;
  threads = usable(threads, units);
  std::vector<double> sums(units * channels), products(units * channels);
  const auto begin = [&](int64_t unit) { return unit % parts * kNormPart; };
  const auto end = [&](int64_t unit) { return std::min(begin(unit) + kNormPart, stack.pixels); };
  share(units, threads, [&](int64_t unit, int) {
    const int64_t of = unit / parts * channels;
    functions.norm_products(stack, unit / parts, begin(unit), end(unit), scale + of, shift + of,
                            grad_y, &sums[unit * channels], &products[unit * channels]);
  });
  std::vector<float> mean_grad(stack.batch * channels), mean_product(stack.batch * channels);
  for (int64_t i = 0; i < stack.batch * channels; ++i) {
    double sum = 0, product = 0;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t at = (i / channels * parts + part) * channels + i % channels;
      sum += sums[at], product += products[at];
    }
    mean_grad[i] = static_cast<float>(sum / stack.pixels);
    mean_product[i] = static_cast<float>(product / stack.pixels);
  }
  share(units, threads, [&](int64_t unit, int) {
    const int64_t of = unit / parts * channels;
    functions.norm_backward(stack, unit / parts, begin(unit), end(unit), scale + of, shift + of,
                            mean_grad.data() + of, mean_product.data() + of, grad_y, grads);
  });
}

#define INSTANTIATE(T)                                                                            \
  template void scan_forward(const Scan<T>&, T*, float*, float*, int, int);                       \
  template void scan_backward(const Scan<T>&, const ScanGradients<T>&, int, int);                 \
  template void convolve(const Convolution<T>&, T*, int, int);                                    \
  template void convolve_backward(const Convolution<T>&, const T*, T*, float*, float*, int, int); \
  template void instance_norm(const Stack<T>&, double, float*, float*, T*, int, int);             \
  template void instance_norm_backward(const Stack<T>&, const float*, const float*, const T*,     \
                                       T* const*, int, int);
INSTANTIATE(float)
INSTANTIATE(BFloat16)

}  // namespace vimunet
