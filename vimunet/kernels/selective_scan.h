// Interface of the selective scan; `selective_scan.cpp` explains the letters and the method.
#pragma once

#include <cstdint>
#include <vector>

namespace vimunet {

// Tokens from one saved state to the next. With 16, as many as there are states in every Vim, the
// saved states take as much memory as the input.
constexpr int64_t kChunk = 16;

// Inputs of a scan; all contiguous.
struct Scan {
  int64_t batch, length, channels, states;
  bool reverse;        // from the last token to the first
  const float* u;      // (b, l, d)
  const float* delta;  // (b, l, d)
  const float* A;      // (d, n)
  const float* B;      // (b, l, n)
  const float* C;      // (b, l, n)
  const float* D;      // (d)
};

// Where the gradients go, in the shapes of the inputs.
struct Gradients {
  float *u, *delta, *A, *B, *C, *D;
};

// Numbers of channels that this processor can compute at once, the fastest first.
std::vector<int> widths();

// Write y (b, l, d) and, unless it is null, `borders` (chunks, b, d, n): the states before the first
// step of each chunk, in the order of the scan.
void forward(const Scan& scan, float* y, float* borders, int threads, int width);

// Write the gradients, given that of y and the borders that `forward` has written.
void backward(const Scan& scan, const float* grad_y, const float* borders, const Gradients& grad,
              int threads, int width);

}  // namespace vimunet
