// The Python module `vimunet._kernels`. Arrays come in and go out by DLPack, without copies; every
// output is allocated by the caller. The interpreter lock is released while the kernels run.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <vector>

#include "selective_scan.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <int Axes>
using In = nb::ndarray<const float, nb::ndim<Axes>, nb::c_contig, nb::device::cpu>;
template <int Axes>
using Out = nb::ndarray<float, nb::ndim<Axes>, nb::c_contig, nb::device::cpu>;

template <class Array>
void expect(const Array& array, std::initializer_list<int64_t> shape, const char* message) {
  size_t axis = 0;
  for (const int64_t size : shape) {
    if (static_cast<int64_t>(array.shape(axis++)) != size) throw std::invalid_argument(message);
  }
}

vimunet::Scan make_scan(const In<3>& u, const In<3>& delta, const In<2>& A, const In<3>& B,
                        const In<3>& C, const In<1>& D, bool reverse) {
  const int64_t b = u.shape(0), l = u.shape(1), d = u.shape(2), n = A.shape(1);
  expect(delta, {b, l, d}, "`delta` must have the shape (b, l, d) of `u`.");
  expect(A, {d, n}, "`A` must have shape (d, n).");
  expect(B, {b, l, n}, "`B` must have shape (b, l, n).");
  expect(C, {b, l, n}, "`C` must have shape (b, l, n).");
  expect(D, {d}, "`D` must have shape (d,).");
  return {b, l, d, n, reverse, u.data(), delta.data(), A.data(), B.data(), C.data(), D.data()};
}

int64_t chunks(const vimunet::Scan& scan) {
  return (scan.length + vimunet::kChunk - 1) / vimunet::kChunk;
}

void scan_forward(const In<3>& u, const In<3>& delta, const In<2>& A, const In<3>& B,
                  const In<3>& C, const In<1>& D, const Out<3>& y,
                  const std::optional<Out<4>>& borders, bool reverse, int threads, int width) {
  const vimunet::Scan scan = make_scan(u, delta, A, B, C, D, reverse);
  expect(y, {scan.batch, scan.length, scan.channels}, "`y` must have the shape of `u`.");
  if (borders) {
    expect(*borders, {chunks(scan), scan.batch, scan.channels, scan.states},
           "`borders` must have shape (chunks, b, d, n).");
  }
  float* saved = borders ? borders->data() : nullptr;
  const nb::gil_scoped_release released;
  vimunet::forward(scan, y.data(), saved, threads, width);
}

void scan_backward(const In<3>& grad_y, const In<3>& u, const In<3>& delta, const In<2>& A,
                   const In<3>& B, const In<3>& C, const In<1>& D, const In<4>& borders,
                   const Out<3>& grad_u, const Out<3>& grad_delta, const Out<2>& grad_A,
                   const Out<3>& grad_B, const Out<3>& grad_C, const Out<1>& grad_D, bool reverse,
                   int threads, int width) {
  const vimunet::Scan scan = make_scan(u, delta, A, B, C, D, reverse);
  const int64_t b = scan.batch, l = scan.length, d = scan.channels, n = scan.states;
  expect(grad_y, {b, l, d}, "`grad_y` must have the shape of `u`.");
  expect(borders, {chunks(scan), b, d, n}, "`borders` must have shape (chunks, b, d, n).");
  expect(grad_u, {b, l, d}, "`grad_u` must have the shape of `u`.");
  expect(grad_delta, {b, l, d}, "`grad_delta` must have the shape of `delta`.");
  expect(grad_A, {d, n}, "`grad_A` must have the shape of `A`.");
  expect(grad_B, {b, l, n}, "`grad_B` must have the shape of `B`.");
  expect(grad_C, {b, l, n}, "`grad_C` must have the shape of `C`.");
  expect(grad_D, {d}, "`grad_D` must have the shape of `D`.");
  const vimunet::Gradients grad{grad_u.data(), grad_delta.data(), grad_A.data(),
                                grad_B.data(), grad_C.data(),     grad_D.data()};
  const nb::gil_scoped_release released;
  vimunet::backward(scan, grad_y.data(), borders.data(), grad, threads, width);
}

}  // namespace

NB_MODULE(_kernels, module) {
  module.doc() = "Compiled kernels of vimunet for the CPU. `vimunet.models.scan` calls them.";
  module.attr("CHUNK") = vimunet::kChunk;
  const std::vector<int> widths = vimunet::widths();
  module.attr("WIDTHS") = nb::cast(widths);
  // Never converted: an output that nanobind had to copy would be lost.
  module.def("selective_scan_forward", &scan_forward, "u"_a.noconvert(), "delta"_a.noconvert(),
             "A"_a.noconvert(), "B"_a.noconvert(), "C"_a.noconvert(), "D"_a.noconvert(),
             "y"_a.noconvert(), "borders"_a.noconvert().none(), "reverse"_a, "threads"_a,
             "width"_a = widths.front());
  module.def("selective_scan_backward", &scan_backward, "grad_y"_a.noconvert(), "u"_a.noconvert(),
             "delta"_a.noconvert(), "A"_a.noconvert(), "B"_a.noconvert(), "C"_a.noconvert(),
             "D"_a.noconvert(), "borders"_a.noconvert(), "grad_u"_a.noconvert(),
             "grad_delta"_a.noconvert(), "grad_A"_a.noconvert(), "grad_B"_a.noconvert(),
             "grad_C"_a.noconvert(), "grad_D"_a.noconvert(), "reverse"_a, "threads"_a,
             "width"_a = widths.front());
}
