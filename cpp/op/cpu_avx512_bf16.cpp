// The AVX-512 kernels with the processor's own rounding to bfloat16 (AVX512_BF16: Zen 4, Cooper Lake and later).
// It rounds to nearest even and keeps NaN as `narrow` in half.h does, but takes subnormal floats for zeros: a tile in
// which a product is one goes the way of the others.
#include "cpu_avx512.h"

namespace jumpout {
namespace {

struct Avx512Bf16 : Avx512 {
  using Avx512::apply;

  template <bool kRelu, bool kStream>
  static Bits apply(const BFloat16* x, BFloat16* y, Bits keep, float scale) {
    const __m512 factor = _mm512_set1_ps(scale);
    __m512 product[4];
    __mmask16 subnormal = 0;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 16 * i));
      product[i] = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)), factor);
      subnormal |= _mm512_fpclass_ps_mask(product[i], kSubnormal);
    }
    if (subnormal) return Avx512::apply<kRelu, kStream>(x, y, keep, scale);
    Bits kept = 0;
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      auto mask = static_cast<__mmask32>(keep >> 32 * i);
      if (kRelu) mask &= stays(_mm512_loadu_si512(x + 32 * i));
      const auto both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(product[2 * i + 1], product[2 * i]));
      store<kStream>(y + 32 * i, _mm512_maskz_mov_epi16(mask, both));
      kept |= static_cast<Bits>(mask) << 32 * i;
    }
    return kept;
  }

  // As torch's relu: what is above zero, and NaN, negative ones included.
  static __mmask32 stays(__m512i bits) {
    return _mm512_cmpgt_epi16_mask(bits, _mm512_setzero_si512()) |
           _mm512_cmpgt_epu16_mask(bits, _mm512_set1_epi16(static_cast<short>(0xFF80)));
  }

  static constexpr int kSubnormal = 0x20;  // of VFPCLASSPS
};

}  // namespace

const CpuKernels kAvx512Bf16Kernels = make_kernels<Avx512Bf16>("avx512_bf16");

}  // namespace jumpout
