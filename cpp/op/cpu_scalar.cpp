// The portable kernels: one block of eight elements at a time. The other instruction sets must give the same bits.
#include "cpu_run.h"

namespace jumpout {
namespace {

struct Scalar {
  using Bits = uint8_t;
  static constexpr int kBlocks = 1;
  static constexpr int kAlign = 0;  // no stores past the caches

  static uint64_t keys(uint64_t seed) { return seed; }
  static Bits keep(uint64_t seed, int64_t block, uint32_t threshold) {
    return static_cast<Bits>(keep_byte(seed, block, threshold));
  }

  template <typename T>
  static int64_t count(const T* x) {
    int64_t active = 0;
    for (int i = 0; i < kBlock; ++i) active += widen(x[i]) > 0;
    return active;
  }

  template <bool kRelu, bool kStream, typename T>
  static Bits apply(const T* x, T* y, Bits keep, Compute<T> scale) {
    return static_cast<Bits>(apply_scalar(x, y, keep, scale, kRelu, kBlock));
  }
};

}  // namespace

const CpuKernels kScalarKernels = make_kernels<Scalar>("scalar");

}  // namespace jumpout
