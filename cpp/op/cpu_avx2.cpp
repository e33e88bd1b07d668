// AVX2 with F16C: tiles of four blocks, 32 elements, one 32-bit word of keep bits. Philox as in cpu_avx512.cpp, in four
// 64-bit lanes, one block each.
#include <immintrin.h>

#include "cpu_run.h"

namespace jumpout {
namespace {

struct Avx2 {
  using Bits = uint32_t;
  static constexpr int kBlocks = 4;
  static constexpr int kAlign = 0;  // no stores past the caches

  struct Keys {
    __m256i even[kPhiloxRounds], odd[kPhiloxRounds];
  };

  static Keys keys(uint64_t seed) {
    Keys keys;
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round, key0 += kPhiloxWeyl0, key1 += kPhiloxWeyl1) {
      keys.even[round] = _mm256_set1_epi64x(key0);
      keys.odd[round] = _mm256_set1_epi64x(key1);
    }
    return keys;
  }

  static Bits keep(const Keys& keys, int64_t first_block, uint32_t threshold) {
    const __m256i multiplier0 = _mm256_set1_epi64x(kPhiloxMultiplier0);
    const __m256i multiplier1 = _mm256_set1_epi64x(kPhiloxMultiplier1);
    const __m256i index = _mm256_add_epi64(_mm256_set1_epi64x(first_block), _mm256_setr_epi64x(0, 1, 2, 3));
    __m256i c0 = index, c1 = _mm256_srli_epi64(index, 32);
    __m256i c2 = _mm256_setzero_si256(), c3 = _mm256_set1_epi64x(static_cast<int64_t>(Stream::kKeep));
#pragma GCC unroll 10
    for (int round = 0; round < kPhiloxRounds; ++round) {
      const __m256i product0 = _mm256_mul_epu32(c0, multiplier0), product1 = _mm256_mul_epu32(c2, multiplier1);
      c0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product1, 32), c1), keys.even[round]);
      c2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product0, 32), c3), keys.odd[round]);
      c1 = product1;
      c3 = product0;
    }
    const __m256i low = _mm256_blend_epi32(c0, _mm256_slli_epi64(c1, 32), 0xAA);
    const __m256i high = _mm256_blend_epi32(c2, _mm256_slli_epi64(c3, 32), 0xAA);
    const __m256i limit = _mm256_set1_epi16(static_cast<short>(threshold));
    // Packing the words of blocks (0, 2) and (1, 3) to bytes gives the blocks in sequence.
    const __m256i bytes = _mm256_packs_epi16(not_below(_mm256_unpacklo_epi64(low, high), limit),
                                             not_below(_mm256_unpackhi_epi64(low, high), limit));
    return static_cast<Bits>(_mm256_movemask_epi8(bytes));
  }

  // All ones where value >= limit, unsigned 16 bit.
  static __m256i not_below(__m256i value, __m256i limit) {
    return _mm256_cmpeq_epi16(_mm256_max_epu16(value, limit), value);
  }

  static int64_t count(const float* x) {
    uint32_t active = 0;
    for (int i = 0; i < 4; ++i) {
      const __m256 positive = _mm256_cmp_ps(_mm256_loadu_ps(x + 8 * i), _mm256_setzero_ps(), _CMP_GT_OQ);
      active |= static_cast<uint32_t>(_mm256_movemask_ps(positive)) << 8 * i;
    }
    return __builtin_popcount(active);
  }

  static int64_t count(const double* x) {
    uint32_t active = 0;
    for (int i = 0; i < 8; ++i) {
      const __m256d positive = _mm256_cmp_pd(_mm256_loadu_pd(x + 4 * i), _mm256_setzero_pd(), _CMP_GT_OQ);
      active |= static_cast<uint32_t>(_mm256_movemask_pd(positive)) << 4 * i;
    }
    return __builtin_popcount(active);
  }

  static int64_t count(const BFloat16* x) { return count_halves(x, 0x7F80); }
  static int64_t count(const Float16* x) { return count_halves(x, 0x7C00); }

  // Positive and no NaN: as signed words in [1, infinity].
  static int64_t count_halves(const void* x, short infinity) {
    uint32_t words = 0;
    int64_t active = 0;
    for (int i = 0; i < 2; ++i) {
      const __m256i bits = _mm256_loadu_si256(static_cast<const __m256i*>(x) + i);
      const __m256i positive = _mm256_cmpgt_epi16(bits, _mm256_setzero_si256());
      const __m256i nan = _mm256_cmpgt_epi16(bits, _mm256_set1_epi16(infinity));
      words = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_andnot_si256(nan, positive)));
      active += __builtin_popcount(words) / 2;
    }
    return active;
  }

  template <bool kRelu, bool kStream>
  static Bits apply(const float* x, float* y, Bits keep, float scale) {
    return apply8<kRelu>(
        keep, scale, [&](int i) { return _mm256_loadu_ps(x + i); },
        [&](int i, __m256 value) { _mm256_storeu_ps(y + i, value); });
  }

  template <bool kRelu, bool kStream>
  static Bits apply(const BFloat16* x, BFloat16* y, Bits keep, float scale) {
    return apply8<kRelu>(
        keep, scale,
        [&](int i) {
          const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i));
          return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
        },
        [&](int i, __m256 value) {
          const __m256i rounded = round_to_bfloat16(value);
          const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
          _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i), words);
        });
  }

  template <bool kRelu, bool kStream>
  static Bits apply(const Float16* x, Float16* y, Bits keep, float scale) {
    return apply8<kRelu>(
        keep, scale, [&](int i) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i))); },
        [&](int i, __m256 value) {
          _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i),
                           _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        });
  }

  template <bool kRelu, bool kStream>
  static Bits apply(const double* x, double* y, Bits keep, double scale) {
    const __m256d factor = _mm256_set1_pd(scale);
    const __m256i select = _mm256_setr_epi64x(1, 2, 4, 8);
    Bits kept = 0;
    for (int i = 0; i < 32; i += 4) {
      const __m256d value = _mm256_loadu_pd(x + i);
      const __m256i bits = _mm256_and_si256(_mm256_set1_epi64x(keep >> i), select);
      __m256d mask = _mm256_castsi256_pd(_mm256_cmpeq_epi64(bits, select));
      if (kRelu) mask = _mm256_and_pd(mask, _mm256_cmp_pd(value, _mm256_setzero_pd(), _CMP_NLE_UQ));
      _mm256_storeu_pd(y + i, _mm256_and_pd(mask, _mm256_mul_pd(value, factor)));
      kept |= static_cast<Bits>(_mm256_movemask_pd(mask)) << i;
    }
    return kept;
  }

  template <bool kRelu, typename Load, typename Store>
  static Bits apply8(Bits keep, float scale, const Load& load, const Store& store) {
    const __m256 factor = _mm256_set1_ps(scale);
    const __m256i select = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    Bits kept = 0;
#pragma GCC unroll 4
    for (int i = 0; i < 32; i += 8) {
      const __m256 value = load(i);
      const __m256i bits = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(keep >> i)), select);
      __m256 mask = _mm256_castsi256_ps(_mm256_cmpeq_epi32(bits, select));
      if (kRelu) mask = _mm256_and_ps(mask, _mm256_cmp_ps(value, _mm256_setzero_ps(), _CMP_NLE_UQ));
      store(i, _mm256_and_ps(mask, _mm256_mul_ps(value, factor)));
      kept |= static_cast<Bits>(_mm256_movemask_ps(mask)) << i;
    }
    return kept;
  }

  // As `narrow` in half.h: to nearest even, NaN stays NaN. The result is in the low half of each 32-bit lane.
  static __m256i round_to_bfloat16(__m256 value) {
    const __m256i bits = _mm256_castps_si256(value), upper = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, _mm256_or_si256(upper, _mm256_set1_epi32(0x40)), nan);
  }
};

}  // namespace

const CpuKernels kAvx2Kernels = make_kernels<Avx2>("avx2");

}  // namespace jumpout
