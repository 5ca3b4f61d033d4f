// The kernels for one instruction set. CMake compiles this file once for each, with
// VIMUNET_KERNELS (the name of the table) and VIMUNET_LANES (how many floats a register holds).
// All code is in an unnamed namespace and uses no templates of the standard library, so that the
// linker cannot mix functions of two instruction sets.

#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "kernels.h"

namespace vimunet {
namespace {

#include "lanes.h"
//
#include "causal_conv.h"
#include "instance_norm.h"
#include "selective_scan.h"

template <class T>
constexpr Functions<T> functions() {
  return {scan_forward<T>,  scan_backward<T>, convolve<T>,      convolve_backward<T>,
          moments<T>,       normalize<T>,     norm_products<T>, norm_backward<T>};
}

}  // namespace

extern const Kernels VIMUNET_KERNELS;
const Kernels VIMUNET_KERNELS{kLanes, functions<float>(), functions<BFloat16>()};

}  // namespace vimunet
