// Instance norm of stacked maps in channels-last memory: every channel of every image gets zero mean
// and unit variance. Reads each part where it is, so that nothing is concatenated before.

// Pixels whose sums are taken in float32; they stay in the level-1 cache for the second look.
constexpr int64_t kNormPixels = 64;

template <class T>
INLINE Float read(const Stack<T>& stack, const T* from, int64_t count) {
  const Float x = load(from, count);
  return stack.relu ? maximum(x, Float{}) : x;
}

// Mean and sum of squared distances from it, of the pixels [begin, end), for each channel. Blocks of
// pixels are summed around their own mean and joined in float64 (Chan, Golub & LeVeque 1983), so
// that a large offset costs no digits.
template <class T>
void moments(const Stack<T>& stack, int64_t image, int64_t begin, int64_t end, double* mean,
             double* squares) {
  for (int64_t c = 0; c < stack.channels; ++c) mean[c] = squares[c] = 0;
  for (int64_t start = begin; start < end; start += kNormPixels) {
    const int64_t pixels = least(kNormPixels, end - start), before = start - begin;
    int64_t offset = 0;
    for (int64_t index = 0; index < stack.count; ++index) {
      const auto& part = stack.parts[index];
      const T* rows = part.data + image * part.image + start * part.pixel;
      for (int64_t first = 0; first < part.channels; first += kLanes) {
        const int64_t count = least(kLanes, part.channels - first);
        Float even{}, odd{};
        for (int64_t p = 0; p + 1 < pixels; p += 2) {
          even += read(stack, rows + p * part.pixel + first, count);
          odd += read(stack, rows + (p + 1) * part.pixel + first, count);
        }
        if (pixels % 2) even += read(stack, rows + (pixels - 1) * part.pixel + first, count);
        const Float middle = (even + odd) * (1.0f / static_cast<float>(pixels));
        Float even_squares{}, odd_squares{}, even_rest{}, odd_rest{};
        for (int64_t p = 0; p + 1 < pixels; p += 2) {
          const Float x = read(stack, rows + p * part.pixel + first, count) - middle;
          const Float z = read(stack, rows + (p + 1) * part.pixel + first, count) - middle;
          even_squares += x * x;
          odd_squares += z * z;
          even_rest += x;
          odd_rest += z;
        }
        if (pixels % 2) {
          const Float x = read(stack, rows + (pixels - 1) * part.pixel + first, count) - middle;
          even_squares += x * x;
          even_rest += x;
        }
        const Float total = even_squares + odd_squares, rest = even_rest + odd_rest;
        for (int64_t i = 0; i < count; ++i) {
          const int64_t c = offset + first + i;
          const double own = middle[i] + static_cast<double>(rest[i]) / pixels;
          const double apart = own - mean[c];
          const double share = static_cast<double>(pixels) / (before + pixels);
          mean[c] += apart * share;
          squares[c] += total[i] + apart * apart * before * share;
        }
      }
      offset += part.channels;
    }
  }
}

// y = x * scale + shift for the pixels [begin, end).
template <class T>
void normalize(const Stack<T>& stack, int64_t image, int64_t begin, int64_t end, const float* scale,
               const float* shift, T* y) {
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    T* row = y + (image * stack.pixels + pixel) * stack.channels;
    int64_t offset = 0;
    for (int64_t index = 0; index < stack.count; ++index) {
      const auto& part = stack.parts[index];
      const T* from = part.data + image * part.image + pixel * part.pixel;
      for (int64_t first = 0; first < part.channels; first += kLanes) {
        const int64_t count = least(kLanes, part.channels - first);
        const int64_t c = offset + first;
        const Float x = read(stack, from + first, count);
        store(row + c, x * load(scale + c, count) + load(shift + c, count), count);
      }
      offset += part.channels;
    }
  }
}

// Sums of grad_y and of grad_y * y over the pixels [begin, end), for each channel.
template <class T>
void norm_products(const Stack<T>& stack, int64_t image, int64_t begin, int64_t end,
                   const float* scale, const float* shift, const T* grad_y, double* sums,
                   double* products) {
  for (int64_t c = 0; c < stack.channels; ++c) sums[c] = products[c] = 0;
  for (int64_t start = begin; start < end; start += kNormPixels) {
    const int64_t pixels = least(kNormPixels, end - start);
    const T* grads = grad_y + (image * stack.pixels + start) * stack.channels;
    int64_t offset = 0;
    for (int64_t index = 0; index < stack.count; ++index) {
      const auto& part = stack.parts[index];
      const T* rows = part.data + image * part.image + start * part.pixel;
      for (int64_t first = 0; first < part.channels; first += kLanes) {
        const int64_t count = least(kLanes, part.channels - first);
        const int64_t c = offset + first;
        const Float factor = load(scale + c, count), added = load(shift + c, count);
        Float sum{}, product{};
        for (int64_t p = 0; p < pixels; ++p) {
          const Float g = load(grads + p * stack.channels + c, count);
          const Float x = read(stack, rows + p * part.pixel + first, count);
          sum += g;
          product += g * (x * factor + added);
        }
        for (int64_t i = 0; i < count; ++i) {
          sums[c + i] += sum[i];
          products[c + i] += product[i];
        }
      }
      offset += part.channels;
    }
  }
}

// grad_x = scale * (grad_y - its mean - y * mean of grad_y * y), where the ReLU let x through.
template <class T>
void norm_backward(const Stack<T>& stack, int64_t image, int64_t begin, int64_t end,
                   const float* scale, const float* shift, const float* mean_grad,
                   const float* mean_product, const T* grad_y, T* const* grads) {
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const T* row = grad_y + (image * stack.pixels + pixel) * stack.channels;
    int64_t offset = 0;
    for (int64_t index = 0; index < stack.count; ++index) {
      const auto& part = stack.parts[index];
      const T* from = part.data + image * part.image + pixel * part.pixel;
      T* to = grads[index] + (image * stack.pixels + pixel) * part.channels;
      for (int64_t first = 0; first < part.channels; first += kLanes) {
        const int64_t count = least(kLanes, part.channels - first);
        const int64_t c = offset + first;
        const Float x = load(from + first, count);
        const Float factor = load(scale + c, count);
        const Float y = (stack.relu ? maximum(x, Float{}) : x) * factor + load(shift + c, count);
        Float g = load(row + c, count) - load(mean_grad + c, count);
        g = factor * (g - y * load(mean_product + c, count));
        if (stack.relu) g = x <= 0.0f ? Float{} : g;
        store(to + first, g, count);
      }
      offset += part.channels;
    }
  }
}
