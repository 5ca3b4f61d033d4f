// Interface of the compiled kernels. Axis letters: b images, c channels, l tokens, d inner channels,
// n states, k scans that run over the same tokens. This header knows nothing of Python.
#pragma once

#include <cstdint>
#include <vector>

namespace vimunet {

// Storage of a bfloat16 number; arithmetic is float32 everywhere.
struct BFloat16 {
  uint16_t bits;
};

// In which order a scan visits the tokens. The last two go down the columns of a row-major grid.
enum class Order : int { forward = 0, reverse = 1, columns = 2, columns_reverse = 3 };

// An array (k, b, l, channels) whose last axis is contiguous; strides in elements.
template <class T>
struct View {
  T* data;
  int64_t scan, image, token;
  T* row(int64_t k, int64_t b, int64_t l) const { return data + k * scan + b * image + l * token; }
};

// Tokens from one saved state to the next. With 16, as many as there are states in every Vim, the
// saved states take as much memory as the input in float32.
constexpr int64_t kChunk = 16;

// k selective scans over the same tokens, summed. `bias` and `gate` may be null: without bias the
// steps are `delta`, with it softplus(delta + bias); with gate the sum is multiplied by silu(gate).
template <class T>
struct Scan {
  int64_t scans, batch, length, channels, states, columns;
  const Order* orders;           // (k)
  View<const T> u, delta, B, C;  // (k, b, l, d), the same, (k, b, l, n), the same
  const float *A, *D, *bias;     // (k, d, n), (k, d), (k, d)
  View<const T> gate;            // (b, l, d)
};

// What the backward pass reads besides the inputs, and where it writes; all contiguous.
template <class T>
struct ScanGradients {
  const T* y;           // (b, l, d) gradient of the output
  const float* sum;     // (b, l, d) the sum before the gate
  const float* borders;
  T *u, *delta, *gate;  // (k, b, l, d), the same, (b, l, d) or null
  float *A, *D, *bias;  // (k, d, n), (k, d), (k, d) or null
  float *B, *C;         // (k, b, l, n)
};

// Causal depthwise convolution of a signal in k directions (`forward` or `reverse`), then SiLU.
template <class T>
struct Convolution {
  int64_t scans, batch, length, channels, taps;
  const Order* orders;
  View<const T> signal;          // (b, l, d)
  const float *weight, *bias;    // (k, taps, d), (k, d)
};

// Images in channels-last memory, side by side in their channels: (b, pixels, c[0] + c[1] + ...).
template <class T>
struct Stack {
  struct Part {
    const T* data;
    int64_t channels, image, pixel;  // strides in elements
  };
  const Part* parts;
  int64_t count;  // of parts
  int64_t batch, pixels, channels;
  bool relu;  // of what is read
};

template <class T>
struct Functions {
  void (*scan_forward)(const Scan<T>&, int64_t image, int64_t block, float* scratch, T* y,
                       float* sum, float* borders);
  void (*scan_backward)(const Scan<T>&, int64_t image, int64_t begin, int64_t end, float* scratch,
                        const ScanGradients<T>&);
  void (*convolve)(const Convolution<T>&, int64_t scan, int64_t image, int64_t begin, int64_t end,
                   T* y);
  void (*convolve_backward)(const Convolution<T>&, int64_t image, int64_t begin, int64_t end,
                            float* scratch, const T* grad_y, T* grad_signal, float* grad_weight,
                            float* grad_bias);
  void (*moments)(const Stack<T>&, int64_t image, int64_t begin, int64_t end, double* mean,
                  double* squares);
  void (*normalize)(const Stack<T>&, int64_t image, int64_t begin, int64_t end, const float* scale,
                    const float* shift, T* y);
  void (*norm_products)(const Stack<T>&, int64_t image, int64_t begin, int64_t end,
                        const float* scale, const float* shift, const T* grad_y, double* sums,
                        double* products);
  void (*norm_backward)(const Stack<T>&, int64_t image, int64_t begin, int64_t end,
                        const float* scale, const float* shift, const float* mean_grad,
                        const float* mean_product, const T* grad_y, T* const* grads);
};

// The functions for one instruction set, which computes `lanes` channels at once.
struct Kernels {
  int lanes;
  Functions<float> float32;
  Functions<BFloat16> bfloat16;
};
extern const Kernels plain_kernels, avx2_kernels, avx512_kernels;

// Numbers of lanes that this processor can compute with, the fastest first.
std::vector<int> widths();

// Floats that `scan_forward` needs in `borders`: the states before each chunk.
int64_t border_size(int64_t scans, int64_t batch, int64_t length, int64_t channels, int64_t states,
                    int width);

// The operations. `sum` (b, l, d) and `borders` may both be null, if there is no backward pass.
template <class T>
void scan_forward(const Scan<T>&, T* y, float* sum, float* borders, int threads, int width);
template <class T>
void scan_backward(const Scan<T>&, const ScanGradients<T>&, int threads, int width);
template <class T>
void convolve(const Convolution<T>&, T* y, int threads, int width);
template <class T>
void convolve_backward(const Convolution<T>&, const T* grad_y, T* grad_signal, float* grad_weight,
                       float* grad_bias, int threads, int width);

// Normalise each channel of each image; `scale` and `shift` (b, c) keep what was done.
template <class T>
void instance_norm(const Stack<T>&, double eps, float* scale, float* shift, T* y, int threads,
                   int width);
template <class T>
void instance_norm_backward(const Stack<T>&, const float* scale, const float* shift,
                            const T* grad_y, T* const* grads, int threads, int width);

}  // namespace vimunet
