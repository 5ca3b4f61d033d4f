// The selective scan, forward and backward: the compiled twin of
// `vimunet.models.scan.selective_scan_reference`. The recurrence of one channel,
//
//     h[t] = exp(delta[t] * A) * h[t-1] + delta[t] * u[t] * B[t]
//     y[t] = sum over n of (C[t] * h[t]) + D * u[t],
//
// is sequential in t and independent between channels. So kLanes neighbouring channels share one
// vector register, and threads share the blocks of kLanes channels. The backward pass keeps the
// states at every kChunk-th token only and recomputes the others.

// Where a scan is: calling `next` goes to the token that it visits after this one.
class Walk {
 public:
  template <class T>
  INLINE Walk(const Scan<T>& scan, int64_t k, int64_t step) : last_(scan.length - 1) {
    const Order order = scan.orders[k];
    const bool down = order == Order::columns || order == Order::columns_reverse;
    const bool back = order == Order::reverse || order == Order::columns_reverse;
    const int64_t from = back ? last_ - step : step, rows = scan.length / scan.columns;
    token = down ? from % rows * scan.columns + from / rows : from;
    stride_ = (down ? scan.columns : 1) * (back ? -1 : 1);
  }
  // Past the end of a column the next one begins.
  INLINE void next() { wrap(token + stride_); }
  INLINE void previous() { wrap(token - stride_); }

  // The token some steps ahead, or nearly that one at an end; only good for a prefetch.
  INLINE int64_t ahead() const { return greatest(0, least(last_, token + kAhead * stride_)); }

  int64_t token;

 private:
  static constexpr int64_t kAhead = 8;
  INLINE void wrap(int64_t to) { token = to > last_ ? to - last_ : to < 0 ? to + last_ : to; }
  int64_t last_, stride_;
};

// Transpose the rows of A of one block to (n, kLanes), times log2(e).
INLINE void load_rates(const float* A, int64_t states, int64_t count, Float* a) {
  for (int64_t j = 0; j < states; ++j) {
    a[j] = Float{};
    for (int64_t i = 0; i < count; ++i) a[j][i] = A[i * states + j] * kLog2E;
  }
}

// Where in `borders` the states (n, kLanes) of one block before one chunk are.
template <class T>
INLINE int64_t border_at(const Scan<T>& scan, int64_t k, int64_t chunk, int64_t image,
                         int64_t block) {
  const int64_t chunks = (scan.length + kChunk - 1) / kChunk;
  const int64_t blocks = (scan.channels + kLanes - 1) / kLanes;
  return (((k * chunks + chunk) * scan.batch + image) * blocks + block) * scan.states * kLanes;
}

// N states if N > 0, else `scan.states`.
template <class T, int N>
INLINE void forward_block(const Scan<T>& scan, int64_t image, int64_t block, float* scratch, T* y,
                          float* sum, float* borders) {
  const int64_t states = N ? N : scan.states;
  const int64_t first = block * kLanes, count = least(kLanes, scan.channels - first);
  Float* __restrict a = reinterpret_cast<Float*>(scratch);
  Float* __restrict h = a + states;
  float* b_row = reinterpret_cast<float*>(h + states);
  float* c_row = b_row + round_up(states, kLanes);
  // The sum over the scans: kept for the backward pass, or in the scratch memory.
  float* total = sum ? sum + image * scan.length * scan.channels + first
                     : c_row + round_up(states, kLanes);
  const int64_t total_stride = sum ? scan.channels : kLanes;
  for (int64_t k = 0; k < scan.scans; ++k) {
    const int64_t row = k * scan.channels + first;
    load_rates(scan.A + row * states, states, count, a);
    for (int64_t j = 0; j < states; ++j) h[j] = Float{};
    const Float skip = load(scan.D + row, count);
    const Float bias = scan.bias ? load(scan.bias + row, count) : Float{};
    const bool last = k + 1 == scan.scans;
    Walk walk(scan, k, 0);
    for (int64_t step = 0; step < scan.length; ++step, walk.next()) {
      const int64_t token = walk.token, ahead = walk.ahead();
      // Rows are too far apart for the processor to see the pattern.
      __builtin_prefetch(scan.u.row(k, image, ahead) + first);
      __builtin_prefetch(scan.delta.row(k, image, ahead) + first);
      if (k > 0) __builtin_prefetch(total + ahead * total_stride);
      if (last && scan.gate.data) __builtin_prefetch(scan.gate.row(0, image, ahead) + first);
      if (borders && step % kChunk == 0) {
        std::memcpy(borders + border_at(scan, k, step / kChunk, image, block), h,
                    states * sizeof(Float));
      }
      const float* __restrict b = as_floats(scan.B.row(k, image, token), states, b_row);
      const float* __restrict c = as_floats(scan.C.row(k, image, token), states, c_row);
      const Float u = load(scan.u.row(k, image, token) + first, count);
      Float delta = load(scan.delta.row(k, image, token) + first, count);
      if (scan.bias) delta = softplus(delta + bias);
      const Float input = delta * u;
      Float out = skip * u;
      for (int64_t j = 0; j < states; ++j) {
        h[j] = exp2_of(delta, a[j]) * h[j] + input * b[j];
        out += h[j] * c[j];
      }
      float* at = total + token * total_stride;
      if (k > 0) out += load(at, count);
      if (!last || sum) store(at, out, count);
      if (last) {
        if (scan.gate.data) {
          const Float z = load(scan.gate.row(0, image, token) + first, count);
          out *= z * sigmoid(z);
        }
        store(y + (image * scan.length + token) * scan.channels + first, out, count);
      }
    }
  }
}

// One scan of the blocks [begin, end) of one image, chunk by chunk against its direction. The sums
// over channels (gradients of B and C) run over the lanes of the blocks first.
template <class T, int N>
INLINE void backward_blocks(const Scan<T>& scan, int64_t k, int64_t image, int64_t begin,
                            int64_t end, float* scratch, const ScanGradients<T>& grad) {
  const int64_t states = N ? N : scan.states, blocks = end - begin;
  Float* __restrict all_a = reinterpret_cast<Float*>(scratch);
  Float* __restrict all_carry = all_a + blocks * states;  // gradient of the state, from later steps
  Float* __restrict all_grad_a = all_carry + blocks * states;
  Float* __restrict grad_skip = all_grad_a + blocks * states;
  Float* __restrict grad_bias = grad_skip + blocks;
  Float* __restrict h = grad_bias + blocks;  // before each step of the chunk, and after the last
  Float* __restrict decays = h + (kChunk + 1) * states;
  Float* __restrict deltas = decays + kChunk * states;
  Float* __restrict sums_B = deltas + kChunk;
  Float* __restrict sums_C = sums_B + kChunk * states;
  float* b_row = reinterpret_cast<float*>(sums_C + kChunk * states);
  float* c_row = b_row + round_up(states, kLanes);
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t first = (begin + i) * kLanes;
    const int64_t count = least(kLanes, scan.channels - first);
    load_rates(scan.A + (k * scan.channels + first) * states, states, count, all_a + i * states);
    for (int64_t j = 0; j < states; ++j) {
      all_carry[i * states + j] = all_grad_a[i * states + j] = Float{};
    }
    grad_skip[i] = grad_bias[i] = Float{};
  }
  for (int64_t chunk = (scan.length - 1) / kChunk; chunk >= 0; --chunk) {
    const int64_t start = chunk * kChunk, steps = least(kChunk, scan.length - start);
    for (int64_t i = 0; i < steps * states; ++i) sums_B[i] = sums_C[i] = Float{};
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t first = (begin + i) * kLanes;
      const int64_t count = least(kLanes, scan.channels - first);
      const int64_t channel = k * scan.channels + first;
      const Float* __restrict a = all_a + i * states;
      Float* __restrict carry = all_carry + i * states;
      Float* __restrict grad_a = all_grad_a + i * states;
      const Float bias = scan.bias ? load(scan.bias + channel, count) : Float{};
      std::memcpy(h, grad.borders + border_at(scan, k, chunk, image, begin + i),
                  states * sizeof(Float));
      Walk walk(scan, k, start);
      for (int64_t step = 0; step < steps; ++step, walk.next()) {
        const float* __restrict b = as_floats(scan.B.row(k, image, walk.token), states, b_row);
        const Float u = load(scan.u.row(k, image, walk.token) + first, count);
        Float delta = load(scan.delta.row(k, image, walk.token) + first, count);
        if (scan.bias) delta = softplus(delta + bias);
        deltas[step] = delta;
        const Float input = delta * u;
        Float* __restrict decay = decays + step * states;
        const Float* before = h + step * states;
        Float* after = h + (step + 1) * states;
        for (int64_t j = 0; j < states; ++j) {
          decay[j] = exp2_of(delta, a[j]);
          after[j] = decay[j] * before[j] + input * b[j];
        }
      }
      const Float skip = load(scan.D + channel, count);
      Walk back(scan, k, start + steps - 1);
      for (int64_t step = steps - 1; step >= 0; --step, back.previous()) {
        const int64_t token = back.token;
        const float* __restrict b = as_floats(scan.B.row(k, image, token), states, b_row);
        const float* __restrict c = as_floats(scan.C.row(k, image, token), states, c_row);
        const Float delta = deltas[step];
        const Float u = load(scan.u.row(k, image, token) + first, count);
        const Float input = delta * u;
        const int64_t at = (image * scan.length + token) * scan.channels + first;
        Float grad_out = load(grad.y + at, count);
        if (scan.gate.data) {
          const Float z = load(scan.gate.row(0, image, token) + first, count);
          const Float s = sigmoid(z);
          if (k == 0) {
            const Float slope = s * (1.0f + z * (1.0f - s));
            store(grad.gate + at, grad_out * load(grad.sum + at, count) * slope, count);
          }
          grad_out *= z * s;
        }
        const Float* __restrict decay = decays + step * states;
        const Float* __restrict before = h + step * states;
        const Float* __restrict after = h + (step + 1) * states;
        Float* __restrict sum_B = sums_B + step * states;
        Float* __restrict sum_C = sums_C + step * states;
        Float grad_input{}, grad_log2{};
        for (int64_t j = 0; j < states; ++j) {
          const Float g = carry[j] + grad_out * c[j];
          sum_C[j] += grad_out * after[j];
          sum_B[j] += g * input;
          grad_input += g * b[j];
          carry[j] = decay[j] * g;
          const Float grad_exponent = carry[j] * before[j];
          grad_a[j] += grad_exponent * delta;
          grad_log2 += grad_exponent * a[j];
        }
        grad_skip[i] += grad_out * u;
        Float grad_delta = grad_input * u + grad_log2 * kLn2;
        if (scan.bias) {  // the slope of softplus(x) = delta is 1 - exp(-delta)
          grad_delta *= 1.0f - exp_of(-delta);
          grad_bias[i] += grad_delta;
        }
        const int64_t to = k * scan.batch * scan.length * scan.channels + at;
        store(grad.u + to, grad_input * delta + skip * grad_out, count);
        store(grad.delta + to, grad_delta, count);
      }
    }
    Walk walk(scan, k, start);
    for (int64_t step = 0; step < steps; ++step, walk.next()) {
      const int64_t row = (k * scan.batch + image) * scan.length + walk.token;
      for (int64_t j = 0; j < states; ++j) {
        grad.B[row * states + j] = sum(sums_B[step * states + j]);
        grad.C[row * states + j] = sum(sums_C[step * states + j]);
      }
    }
  }
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t first = (begin + i) * kLanes;
    const int64_t count = least(kLanes, scan.channels - first);
    for (int64_t lane = 0; lane < count; ++lane) {
      const int64_t channel = (image * scan.scans + k) * scan.channels + first + lane;
      for (int64_t j = 0; j < states; ++j) {
        grad.A[channel * states + j] = all_grad_a[i * states + j][lane];
      }
      grad.D[channel] = grad_skip[i][lane];
      if (grad.bias) grad.bias[channel] = grad_bias[i][lane];
    }
  }
}

// 16 states, as in every Vim, get code of their own.
template <class T>
void scan_forward(const Scan<T>& scan, int64_t image, int64_t block, float* scratch, T* y,
                  float* sum, float* borders) {
  if (scan.states == 16) {
    forward_block<T, 16>(scan, image, block, scratch, y, sum, borders);
  } else {
    forward_block<T, 0>(scan, image, block, scratch, y, sum, borders);
  }
}

template <class T>
void scan_backward(const Scan<T>& scan, int64_t image, int64_t begin, int64_t end, float* scratch,
                   const ScanGradients<T>& grad) {
  for (int64_t k = 0; k < scan.scans; ++k) {
    if (scan.states == 16) {
      backward_blocks<T, 16>(scan, k, image, begin, end, scratch, grad);
    } else {
      backward_blocks<T, 0>(scan, k, image, begin, end, scratch, grad);
    }
  }
}
