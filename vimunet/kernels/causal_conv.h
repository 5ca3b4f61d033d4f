// Each channel of a signal is convolved along the tokens by itself, without looking ahead, then
// goes through SiLU. "Ahead" is meant in the direction of a scan: a reverse one sees later tokens.

// The token that tap `tap` of a scan sees from `token`; the last tap sees the token itself.
template <class T>
INLINE int64_t seen(const Convolution<T>& conv, int64_t k, int64_t token, int64_t tap) {
  const int64_t distance = conv.taps - 1 - tap;
  return conv.orders[k] == Order::reverse ? token + distance : token - distance;
}

template <class T>
INLINE Float convolved(const Convolution<T>& conv, int64_t k, int64_t image, int64_t token,
                       int64_t first, int64_t count) {
  Float total = load(conv.bias + k * conv.channels + first, count);
  for (int64_t tap = 0; tap < conv.taps; ++tap) {
    const int64_t from = seen(conv, k, token, tap);
    if (from < 0 || from >= conv.length) continue;
    const float* weight = conv.weight + (k * conv.taps + tap) * conv.channels + first;
    total += load(weight, count) * load(conv.signal.row(0, image, from) + first, count);
  }
  return total;
}

template <class T>
void convolve(const Convolution<T>& conv, int64_t k, int64_t image, int64_t begin, int64_t end,
              T* y) {
  for (int64_t token = begin; token < end; ++token) {
    T* row = y + ((k * conv.batch + image) * conv.length + token) * conv.channels;
    for (int64_t first = 0; first < conv.channels; first += kLanes) {
      const int64_t count = least(kLanes, conv.channels - first);
      const Float x = convolved(conv, k, image, token, first, count);
      store(row + first, x * sigmoid(x), count);
    }
  }
}

// The gradients of the tokens [begin, end). What reaches them from tokens outside is computed here
// too; of the weights' gradients only the part of [begin, end) is added.
template <class T>
void convolve_backward(const Convolution<T>& conv, int64_t image, int64_t begin, int64_t end,
                       float* scratch, const T* grad_y, T* grad_signal, float* grad_weight,
                       float* grad_bias) {
  const int64_t margin = conv.taps - 1, channels = conv.channels;
  float* grad = scratch;  // (end - begin + 2 margin, channels) before SiLU, of one scan
  float* total = scratch + (end - begin + 2 * margin) * channels;  // (end - begin, channels)
  std::memset(total, 0, (end - begin) * channels * sizeof(float));
  const int64_t low = greatest(0, begin - margin);
  const int64_t high = least(conv.length, end + margin);
  for (int64_t k = 0; k < conv.scans; ++k) {
    for (int64_t token = low; token < high; ++token) {
      const T* from = grad_y + ((k * conv.batch + image) * conv.length + token) * channels;
      float* to = grad + (token - begin + margin) * channels;
      for (int64_t first = 0; first < channels; first += kLanes) {
        const int64_t count = least(kLanes, channels - first);
        const Float x = convolved(conv, k, image, token, first, count), s = sigmoid(x);
        store(to + first, load(from + first, count) * s * (1.0f + x * (1.0f - s)), count);
      }
    }
    for (int64_t token = low; token < high; ++token) {
      const float* from = grad + (token - begin + margin) * channels;
      const bool own = begin <= token && token < end;
      for (int64_t tap = 0; tap < conv.taps; ++tap) {
        const int64_t reached = seen(conv, k, token, tap);
        if (reached < 0 || reached >= conv.length) continue;
        const int64_t row = (k * conv.taps + tap) * channels;
        const T* signal = conv.signal.row(0, image, reached);
        const bool inside = begin <= reached && reached < end;
        float* to = total + (reached - begin) * channels;
        for (int64_t first = 0; first < channels; first += kLanes) {
          const int64_t count = least(kLanes, channels - first);
          const Float g = load(from + first, count);
          if (inside) {
            const Float weight = load(conv.weight + row + first, count);
            store(to + first, load(to + first, count) + weight * g, count);
          }
          if (own) {
            float* sums = grad_weight + row + first;
            store(sums, load(sums, count) + g * load(signal + first, count), count);
          }
        }
      }
      if (!own) continue;
      for (int64_t first = 0; first < channels; first += kLanes) {
        const int64_t count = least(kLanes, channels - first);
        float* sums = grad_bias + k * channels + first;
        store(sums, load(sums, count) + load(from + first, count), count);
      }
    }
  }
  for (int64_t token = begin; token < end; ++token) {
    const float* from = total + (token - begin) * channels;
    T* to = grad_signal + (image * conv.length + token) * channels;
    for (int64_t first = 0; first < channels; first += kLanes) {
      const int64_t count = least(kLanes, channels - first);
      store(to + first, load(from + first, count), count);
    }
  }
}
