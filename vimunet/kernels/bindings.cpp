// The Python module `vimunet._kernels`. Arrays come in and go out by DLPack, without copies; every
// output is allocated by the caller. The interpreter lock is released while the kernels run.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <vector>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "kernels.h"

namespace nb = nanobind;
using namespace nb::literals;
using vimunet::BFloat16;

template <>
struct nanobind::detail::dtype_traits<BFloat16> {
  static constexpr dlpack::dtype value{static_cast<uint8_t>(dlpack::dtype_code::Bfloat), 16, 1};
  static constexpr auto name = const_name("bfloat16");
};

namespace {

// Any strides, but the last axis must be contiguous; `view` checks that.
template <class T, int Axes>
using Strided = nb::ndarray<const T, nb::ndim<Axes>, nb::device::cpu>;
template <class T, int Axes>
using In = nb::ndarray<const T, nb::ndim<Axes>, nb::c_contig, nb::device::cpu>;
template <class T, int Axes>
using Out = nb::ndarray<T, nb::ndim<Axes>, nb::c_contig, nb::device::cpu>;

template <class Array>
void expect(const Array& array, std::initializer_list<int64_t> shape, const char* message) {
  size_t axis = 0;
  for (const int64_t size : shape) {
    if (static_cast<int64_t>(array.shape(axis++)) != size) throw std::invalid_argument(message);
  }
}

template <class T, int Axes>
vimunet::View<const T> view(const Strided<T, Axes>& array) {
  if (array.shape(Axes - 1) > 1 && array.stride(Axes - 1) != 1) {
    throw std::invalid_argument("The last axis must be contiguous.");
  }
  return {array.data(), Axes == 4 ? array.stride(0) : 0, array.stride(Axes - 3),
          array.stride(Axes - 2)};
}

std::vector<vimunet::Order> make_orders(const std::vector<int>& codes, int64_t scans) {
  if (static_cast<int64_t>(codes.size()) != scans) {
    throw std::invalid_argument("`orders` must have one entry for each scan.");
  }
  std::vector<vimunet::Order> orders;
  for (const int code : codes) {
    if (code < 0 || code > 3) throw std::invalid_argument("`orders` must be from 0 to 3.");
    orders.push_back(static_cast<vimunet::Order>(code));
  }
  return orders;
}

// The arguments that describe a scan, as Python passes them.
template <class T>
struct ScanInputs {
  const Strided<T, 4>&u, &delta;
  const In<float, 3>& A;
  const Strided<T, 4>&B, &C;
  const In<float, 2>& D;
  const std::optional<In<float, 2>>& bias;
  const std::optional<Strided<T, 3>>& gate;
  int64_t columns;

  vimunet::Scan<T> make(const std::vector<vimunet::Order>& orders) const {
    const int64_t k = u.shape(0), b = u.shape(1), l = u.shape(2), d = u.shape(3), n = A.shape(2);
    expect(delta, {k, b, l, d}, "`delta` must have the shape (k, b, l, d) of `u`.");
    expect(A, {k, d, n}, "`A` must have shape (k, d, n).");
    expect(B, {k, b, l, n}, "`B` must have shape (k, b, l, n).");
    expect(C, {k, b, l, n}, "`C` must have shape (k, b, l, n).");
    expect(D, {k, d}, "`D` must have shape (k, d).");
    if (bias) expect(*bias, {k, d}, "`bias` must have shape (k, d).");
    if (gate) expect(*gate, {b, l, d}, "`gate` must have shape (b, l, d).");
    if (columns < 1 || l % columns) throw std::invalid_argument("`columns` must divide l.");
    return {k, b, l, d, n, columns, orders.data(), view<T, 4>(u), view<T, 4>(delta),
            view<T, 4>(B), view<T, 4>(C), A.data(), D.data(), bias ? bias->data() : nullptr,
            gate ? view<T, 3>(*gate) : vimunet::View<const T>{}};
  }
};

template <class T>
void check_borders(const vimunet::Scan<T>& scan, size_t size, int width) {
  const int64_t needed = vimunet::border_size(scan.scans, scan.batch, scan.length, scan.channels,
                                              scan.states, width);
  if (static_cast<int64_t>(size) != needed) {
    throw std::invalid_argument("`borders` must hold (k, chunks, b, lanes, n) states.");
  }
}

template <class T>
void scan_forward(const Strided<T, 4>& u, const Strided<T, 4>& delta, const In<float, 3>& A,
                  const Strided<T, 4>& B, const Strided<T, 4>& C, const In<float, 2>& D,
                  const std::optional<In<float, 2>>& bias,
                  const std::optional<Strided<T, 3>>& gate, const Out<T, 3>& y,
                  const std::optional<Out<float, 3>>& sum,
                  const std::optional<Out<float, 1>>& borders, const std::vector<int>& codes,
                  int64_t columns, int threads, int width) {
  const auto orders = make_orders(codes, u.shape(0));
  const auto scan = ScanInputs<T>{u, delta, A, B, C, D, bias, gate, columns}.make(orders);
  expect(y, {scan.batch, scan.length, scan.channels}, "`y` must have shape (b, l, d).");
  if (sum) expect(*sum, {scan.batch, scan.length, scan.channels}, "`sum` must be (b, l, d).");
  if (borders) check_borders(scan, borders->size(), width);
  const nb::gil_scoped_release released;
  vimunet::scan_forward(scan, y.data(), sum ? sum->data() : nullptr,
                        borders ? borders->data() : nullptr, threads, width);
}

template <class T>
void scan_backward(const In<T, 3>& grad_y, const Strided<T, 4>& u, const Strided<T, 4>& delta,
                   const In<float, 3>& A, const Strided<T, 4>& B, const Strided<T, 4>& C,
                   const In<float, 2>& D, const std::optional<In<float, 2>>& bias,
                   const std::optional<Strided<T, 3>>& gate,
                   const std::optional<In<float, 3>>& sum, const In<float, 1>& borders,
                   const Out<T, 4>& grad_u, const Out<T, 4>& grad_delta, const Out<float, 3>& grad_A,
                   const Out<float, 4>& grad_B, const Out<float, 4>& grad_C,
                   const Out<float, 2>& grad_D, const std::optional<Out<float, 2>>& grad_bias,
                   const std::optional<Out<T, 3>>& grad_gate, const std::vector<int>& codes,
                   int64_t columns, int threads, int width) {
  const auto orders = make_orders(codes, u.shape(0));
  const auto scan = ScanInputs<T>{u, delta, A, B, C, D, bias, gate, columns}.make(orders);
  const int64_t k = scan.scans, b = scan.batch, l = scan.length, d = scan.channels;
  const int64_t n = scan.states;
  expect(grad_y, {b, l, d}, "`grad_y` must have shape (b, l, d).");
  check_borders(scan, borders.size(), width);
  expect(grad_u, {k, b, l, d}, "`grad_u` must have shape (k, b, l, d).");
  expect(grad_delta, {k, b, l, d}, "`grad_delta` must have shape (k, b, l, d).");
  expect(grad_A, {k, d, n}, "`grad_A` must have shape (k, d, n).");
  expect(grad_B, {k, b, l, n}, "`grad_B` must have shape (k, b, l, n).");
  expect(grad_C, {k, b, l, n}, "`grad_C` must have shape (k, b, l, n).");
  expect(grad_D, {k, d}, "`grad_D` must have shape (k, d).");
  if (bool(grad_bias) != bool(bias) || bool(grad_gate) != bool(gate) || (gate && !sum)) {
    throw std::invalid_argument("`bias` and `gate` need their gradients, `gate` needs `sum`.");
  }
  if (bias) expect(*grad_bias, {k, d}, "`grad_bias` must have shape (k, d).");
  if (gate) {
    expect(*sum, {b, l, d}, "`sum` must have shape (b, l, d).");
    expect(*grad_gate, {b, l, d}, "`grad_gate` must have shape (b, l, d).");
  }
  const vimunet::ScanGradients<T> grad{grad_y.data(),
                                       sum ? sum->data() : nullptr,
                                       borders.data(),
                                       grad_u.data(),
                                       grad_delta.data(),
                                       grad_gate ? grad_gate->data() : nullptr,
                                       grad_A.data(),
                                       grad_D.data(),
                                       grad_bias ? grad_bias->data() : nullptr,
                                       grad_B.data(),
                                       grad_C.data()};
  const nb::gil_scoped_release released;
  vimunet::scan_backward(scan, grad, threads, width);
}

template <class T>
vimunet::Convolution<T> make_convolution(const Strided<T, 3>& signal, const In<float, 3>& weight,
                                         const In<float, 2>& bias,
                                         const std::vector<vimunet::Order>& orders) {
  const int64_t k = weight.shape(0), taps = weight.shape(1), d = signal.shape(2);
  expect(weight, {k, taps, d}, "`weight` must have shape (k, taps, d).");
  expect(bias, {k, d}, "`bias` must have shape (k, d).");
  return {k, static_cast<int64_t>(signal.shape(0)), static_cast<int64_t>(signal.shape(1)), d, taps,
          orders.data(), view<T, 3>(signal), weight.data(), bias.data()};
}

template <class T>
void convolve(const Strided<T, 3>& signal, const In<float, 3>& weight, const In<float, 2>& bias,
              const Out<T, 4>& y, const std::vector<int>& codes, int threads, int width) {
  const auto orders = make_orders(codes, weight.shape(0));
  const auto conv = make_convolution<T>(signal, weight, bias, orders);
  expect(y, {conv.scans, conv.batch, conv.length, conv.channels}, "`y` must be (k, b, l, d).");
  const nb::gil_scoped_release released;
  vimunet::convolve(conv, y.data(), threads, width);
}

template <class T>
void convolve_backward(const In<T, 4>& grad_y, const Strided<T, 3>& signal,
                       const In<float, 3>& weight, const In<float, 2>& bias,
                       const Out<T, 3>& grad_signal, const Out<float, 3>& grad_weight,
                       const Out<float, 2>& grad_bias, const std::vector<int>& codes, int threads,
                       int width) {
  const auto orders = make_orders(codes, weight.shape(0));
  const auto conv = make_convolution<T>(signal, weight, bias, orders);
  const int64_t k = conv.scans, b = conv.batch, l = conv.length, d = conv.channels;
  expect(grad_y, {k, b, l, d}, "`grad_y` must have shape (k, b, l, d).");
  expect(grad_signal, {b, l, d}, "`grad_signal` must have shape (b, l, d).");
  expect(grad_weight, {k, conv.taps, d}, "`grad_weight` must have shape (k, taps, d).");
  expect(grad_bias, {k, d}, "`grad_bias` must have shape (k, d).");
  const nb::gil_scoped_release released;
  vimunet::convolve_backward(conv, grad_y.data(), grad_signal.data(), grad_weight.data(),
                             grad_bias.data(), threads, width);
}

// The parts of a stack and where its description lives.
template <class T>
struct StackInputs {
  std::vector<typename vimunet::Stack<T>::Part> parts;
  vimunet::Stack<T> stack;

  StackInputs(const std::vector<Strided<T, 3>>& maps, bool relu) {
    if (maps.empty()) throw std::invalid_argument("`maps` must not be empty.");
    stack = {nullptr, 0, static_cast<int64_t>(maps[0].shape(0)),
             static_cast<int64_t>(maps[0].shape(1)), 0, relu};
    for (const auto& part : maps) {
      const int64_t channels = part.shape(2);
      expect(part, {stack.batch, stack.pixels, channels}, "`maps` must agree in b and pixels.");
      const auto strides = view<T, 3>(part);
      parts.push_back({strides.data, channels, strides.image, strides.token});
      stack.channels += channels;
    }
    stack.parts = parts.data(), stack.count = parts.size();
  }
};

template <class T>
void instance_norm(const std::vector<Strided<T, 3>>& maps, bool relu, double eps,
                   const Out<float, 2>& scale, const Out<float, 2>& shift, const Out<T, 3>& y,
                   int threads, int width) {
  const StackInputs<T> inputs(maps, relu);
  const auto& stack = inputs.stack;
  expect(scale, {stack.batch, stack.channels}, "`scale` must have shape (b, c).");
  expect(shift, {stack.batch, stack.channels}, "`shift` must have shape (b, c).");
  expect(y, {stack.batch, stack.pixels, stack.channels}, "`y` must have shape (b, pixels, c).");
  const nb::gil_scoped_release released;
  vimunet::instance_norm(stack, eps, scale.data(), shift.data(), y.data(), threads, width);
}

template <class T>
void instance_norm_backward(const In<T, 3>& grad_y, const std::vector<Strided<T, 3>>& maps,
                            bool relu, const In<float, 2>& scale, const In<float, 2>& shift,
                            const std::vector<Out<T, 3>>& grads, int threads, int width) {
  const StackInputs<T> inputs(maps, relu);
  const auto& stack = inputs.stack;
  expect(grad_y, {stack.batch, stack.pixels, stack.channels}, "`grad_y` must be (b, pixels, c).");
  expect(scale, {stack.batch, stack.channels}, "`scale` must have shape (b, c).");
  expect(shift, {stack.batch, stack.channels}, "`shift` must have shape (b, c).");
  if (grads.size() != maps.size()) throw std::invalid_argument("One gradient for each of `maps`.");
  std::vector<T*> outputs;
  for (size_t i = 0; i < grads.size(); ++i) {
    expect(grads[i], {stack.batch, stack.pixels, inputs.parts[i].channels},
           "`grads` must have the shapes of `maps`.");
    outputs.push_back(grads[i].data());
  }
  const nb::gil_scoped_release released;
  vimunet::instance_norm_backward(stack, scale.data(), shift.data(), grad_y.data(), outputs.data(),
                                  threads, width);
}

// Whether freed memory stays in the process. Large buffers otherwise go back to the system, which
// clears each of their pages when they are needed again. glibc has no way to ask for its thresholds
// or to let them move again: afterwards they are what it would have moved them to by itself, had a
// block of 32 MB been freed.
void keep_memory([[maybe_unused]] bool keep) {
#if defined(__GLIBC__)
  constexpr int megabyte = 1024 * 1024;
  mallopt(M_MMAP_MAX, keep ? 0 : 65536);
  mallopt(M_MMAP_THRESHOLD, 32 * megabyte);
  mallopt(M_TRIM_THRESHOLD, keep ? -1 : 64 * megabyte);
  if (!keep) malloc_trim(0);
#endif
}

// Outputs are never converted: one that nanobind had to copy would be lost.
template <class T>
void define(nb::module_& module, int width) {
  module.def("scan_forward", &scan_forward<T>, "u"_a.noconvert(), "delta"_a.noconvert(),
             "A"_a.noconvert(), "B"_a.noconvert(), "C"_a.noconvert(), "D"_a.noconvert(),
             "bias"_a.noconvert().none(), "gate"_a.noconvert().none(), "y"_a.noconvert(),
             "sum"_a.noconvert().none(), "borders"_a.noconvert().none(), "orders"_a, "columns"_a,
             "threads"_a, "width"_a = width);
  module.def("scan_backward", &scan_backward<T>, "grad_y"_a.noconvert(), "u"_a.noconvert(),
             "delta"_a.noconvert(), "A"_a.noconvert(), "B"_a.noconvert(), "C"_a.noconvert(),
             "D"_a.noconvert(), "bias"_a.noconvert().none(), "gate"_a.noconvert().none(),
             "sum"_a.noconvert().none(), "borders"_a.noconvert(), "grad_u"_a.noconvert(),
             "grad_delta"_a.noconvert(), "grad_A"_a.noconvert(), "grad_B"_a.noconvert(),
             "grad_C"_a.noconvert(), "grad_D"_a.noconvert(), "grad_bias"_a.noconvert().none(),
             "grad_gate"_a.noconvert().none(), "orders"_a, "columns"_a, "threads"_a,
             "width"_a = width);
  module.def("convolve", &convolve<T>, "signal"_a.noconvert(), "weight"_a.noconvert(),
             "bias"_a.noconvert(), "y"_a.noconvert(), "orders"_a, "threads"_a, "width"_a = width);
  module.def("convolve_backward", &convolve_backward<T>, "grad_y"_a.noconvert(),
             "signal"_a.noconvert(), "weight"_a.noconvert(), "bias"_a.noconvert(),
             "grad_signal"_a.noconvert(), "grad_weight"_a.noconvert(), "grad_bias"_a.noconvert(),
             "orders"_a, "threads"_a, "width"_a = width);
  module.def("instance_norm", &instance_norm<T>, "maps"_a.noconvert(), "relu"_a, "eps"_a,
             "scale"_a.noconvert(), "shift"_a.noconvert(), "y"_a.noconvert(), "threads"_a,
             "width"_a = width);
  module.def("instance_norm_backward", &instance_norm_backward<T>, "grad_y"_a.noconvert(),
             "maps"_a.noconvert(), "relu"_a, "scale"_a.noconvert(), "shift"_a.noconvert(),
             "grads"_a.noconvert(), "threads"_a, "width"_a = width);
}

}  // namespace

NB_MODULE(_kernels, module) {
  module.doc() = "Compiled kernels of vimunet for the CPU, called by `vimunet.models`.";
  const std::vector<int> widths = vimunet::widths();
  module.attr("WIDTHS") = nb::cast(widths);
  module.attr("CHUNK") = vimunet::kChunk;
#if defined(__x86_64__)
  module.attr("BFLOAT16") = bool(__builtin_cpu_supports("avx512bf16"));
#else
  module.attr("BFLOAT16") = false;
#endif
  define<float>(module, widths.front());
  define<BFloat16>(module, widths.front());
  module.def("keep_memory", &keep_memory, "keep"_a);
}
