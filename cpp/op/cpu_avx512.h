// AVX-512 (F, BW, DQ, VL; BMI2): tiles of eight blocks, 64 elements, one 64-bit word of keep bits.
// Philox runs in eight 64-bit lanes, one block each, with a counter word in the low half: the 32 x 32 -> 64 bit
// multiply reads low halves only, so nothing has to be masked, and a round is 2 multiplies, 2 shifts and 2 three-way
// xors.
#pragma once

#include <immintrin.h>

#include <cmath>

#include "cpu_run.h"

namespace jumpout {
namespace {  // every file that includes this is compiled for another processor

struct Avx512 {
  using Bits = uint64_t;
  static constexpr int kBlocks = 8;
  static constexpr int kAlign = 64;

  struct Keys {
    __m512i even[kPhiloxRounds], odd[kPhiloxRounds];
  };

  static Keys keys(uint64_t seed) {
    Keys keys;
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round, key0 += kPhiloxWeyl0, key1 += kPhiloxWeyl1) {
      keys.even[round] = _mm512_set1_epi64(key0);
      keys.odd[round] = _mm512_set1_epi64(key1);
    }
    return keys;
  }

  static Bits keep(const Keys& keys, int64_t first_block, uint32_t threshold) {
    const __m512i multiplier0 = _mm512_set1_epi64(kPhiloxMultiplier0),
                  multiplier1 = _mm512_set1_epi64(kPhiloxMultiplier1);
    const __m512i index = _mm512_add_epi64(_mm512_set1_epi64(first_block), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
    // The first round, where c2 = 0 and so one of the products is.
    const __m512i stream = _mm512_set1_epi64(static_cast<int64_t>(Stream::kKeep));
    __m512i c3 = _mm512_mul_epu32(index, multiplier0), c1 = _mm512_setzero_si512();
    __m512i c0 = _mm512_xor_si512(_mm512_srli_epi64(index, 32), keys.even[0]);
    __m512i c2 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(c3, 32), stream, keys.odd[0], 0x96);
#pragma GCC unroll 10
    for (int round = 1; round < kPhiloxRounds; ++round) {
      const __m512i product0 = _mm512_mul_epu32(c0, multiplier0), product1 = _mm512_mul_epu32(c2, multiplier1);
      c0 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(product1, 32), c1, keys.even[round], 0x96);
      c2 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(product0, 32), c3, keys.odd[round], 0x96);
      c1 = product1;
      c3 = product0;
    }
    // 16-bit decisions 0-3 of each block in its 64-bit lane, then 4-7: c1 and c3 go into the upper halves.
    const __m512i low = _mm512_mask_shuffle_epi32(c0, 0xAAAA, c1, _MM_PERM_CCAA);
    const __m512i high = _mm512_mask_shuffle_epi32(c2, 0xAAAA, c3, _MM_PERM_CCAA);
    const __m512i limit = _mm512_set1_epi16(static_cast<short>(threshold));
    // The decisions of a block are four bits of each mask; interleaving them costs no vector instruction.
    return _pdep_u64(_mm512_cmpge_epu16_mask(low, limit), 0x0F0F0F0F0F0F0F0F) |
           _pdep_u64(_mm512_cmpge_epu16_mask(high, limit), 0xF0F0F0F0F0F0F0F0);
  }

  static int64_t count(const float* x) {
    uint64_t active = 0;
    for (int i = 0; i < 4; ++i) {
      const __m512 value = _mm512_loadu_ps(x + 16 * i);
      active |= static_cast<uint64_t>(_mm512_cmp_ps_mask(value, _mm512_setzero_ps(), _CMP_GT_OQ)) << 16 * i;
    }
    return __builtin_popcountll(active);
  }

  static int64_t count(const double* x) {
    uint64_t active = 0;
    for (int i = 0; i < 8; ++i) {
      const __m512d value = _mm512_loadu_pd(x + 8 * i);
      active |= static_cast<uint64_t>(_mm512_cmp_pd_mask(value, _mm512_setzero_pd(), _CMP_GT_OQ)) << 8 * i;
    }
    return __builtin_popcountll(active);
  }

  static int64_t count(const BFloat16* x) { return count_halves(x, 0x7F80); }
  static int64_t count(const Float16* x) { return count_halves(x, 0x7C00); }

  // Positive and no NaN: bits in [1, infinity], and so (bits - 1) < infinity, unsigned.
  static int64_t count_halves(const void* x, short infinity) {
    uint64_t active = 0;
    for (int i = 0; i < 2; ++i) {
      const __m512i bits = _mm512_loadu_si512(static_cast<const uint16_t*>(x) + 32 * i);
      const __m512i less_one = _mm512_sub_epi16(bits, _mm512_set1_epi16(1));
      active |= static_cast<uint64_t>(_mm512_cmplt_epu16_mask(less_one, _mm512_set1_epi16(infinity))) << 32 * i;
    }
    return __builtin_popcountll(active);
  }

  static void fence() { _mm_sfence(); }

  template <bool kStream>
  static void store(void* y, __m512i bits) {
    if constexpr (kStream) {
      _mm512_stream_si512(static_cast<__m512i*>(y), bits);
    } else {
      _mm512_storeu_si512(y, bits);
    }
  }

  template <bool kRelu, bool kStream>
  static Bits apply(const float* x, float* y, Bits keep, float scale) {
    return apply16<kRelu>(
        keep, scale, [&](int i) { return _mm512_loadu_ps(x + i); },
        [&](int i, __m512 value) { store<kStream>(y + i, _mm512_castps_si512(value)); });
  }

  // Even elements are the lower halves of 32-bit lanes and odd ones the upper: as floats both are a shift or a mask
  // away, and so is the way back. A tile with a NaN, or a scale that makes one of 0, goes the way of 16 at a time.
  template <bool kRelu, bool kStream>
  static Bits apply(const BFloat16* x, BFloat16* y, Bits keep, float scale) {
    const __m512i bits[] = {_mm512_loadu_si512(x), _mm512_loadu_si512(x + 32)};
    if (has_nan(bits[0]) || has_nan(bits[1]) || !std::isfinite(scale)) return apply_nan<kRelu>(x, y, keep, scale);
    const __m512 factor = _mm512_set1_ps(scale);
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xFFFF0000));
    Bits kept = 0;
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      auto mask = static_cast<__mmask32>(keep >> 32 * i);
      if (kRelu) mask = _mm512_mask_cmpgt_epi16_mask(mask, bits[i], _mm512_setzero_si512());
      const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(bits[i], 16));
      const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(bits[i], upper));
      const __m512i low = _mm512_srli_epi32(rounded_up(_mm512_mul_ps(even, factor)), 16);
      const __m512i high = rounded_up(_mm512_mul_ps(odd, factor));
      const __m512i both = _mm512_mask_blend_epi16(0xAAAAAAAA, low, high);
      store<kStream>(y + 32 * i, _mm512_maskz_mov_epi16(mask, both));
      kept |= static_cast<Bits>(mask) << 32 * i;
    }
    return kept;
  }

  static bool has_nan(__m512i bits) {
    const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi16(0x7FFF));
    return _mm512_cmpgt_epi16_mask(magnitude, _mm512_set1_epi16(0x7F80)) != 0;
  }

  template <bool kRelu>
  [[gnu::noinline]] static Bits apply_nan(const BFloat16* x, BFloat16* y, Bits keep, float scale) {
    return apply16<kRelu>(
        keep, scale,
        [&](int i) {
          const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
          return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
        },
        [&](int i, __m512 value) {
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + i), _mm512_cvtepi32_epi16(round_to_bfloat16(value)));
        });
  }

  template <bool kRelu, bool kStream>
  static Bits apply(const Float16* x, Float16* y, Bits keep, float scale) {
    return apply16<kRelu>(
        keep, scale,
        [&](int i) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i))); },
        [&](int i, __m512 value) {
          const __m256i bits = _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
          if constexpr (kStream) {
            _mm256_stream_si256(reinterpret_cast<__m256i*>(y + i), bits);
          } else {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + i), bits);
          }
        });
  }

  template <bool kRelu, bool kStream>
  static Bits apply(const double* x, double* y, Bits keep, double scale) {
    const __m512d factor = _mm512_set1_pd(scale);
    Bits kept = 0;
    for (int i = 0; i < 64; i += 8) {
      const __m512d value = _mm512_loadu_pd(x + i);
      auto mask = static_cast<__mmask8>(keep >> i);
      if (kRelu) mask = _mm512_mask_cmp_pd_mask(mask, value, _mm512_setzero_pd(), _CMP_NLE_UQ);
      store<kStream>(y + i, _mm512_castpd_si512(_mm512_maskz_mul_pd(mask, value, factor)));
      kept |= static_cast<Bits>(mask) << i;
    }
    return kept;
  }

  template <bool kRelu, typename Load, typename Store>
  static Bits apply16(Bits keep, float scale, const Load& load, const Store& store) {
    const __m512 factor = _mm512_set1_ps(scale);
    Bits kept = 0;
#pragma GCC unroll 4
    for (int i = 0; i < 64; i += 16) {
      const __m512 value = load(i);
      auto mask = static_cast<__mmask16>(keep >> i);
      if (kRelu) mask = _mm512_mask_cmp_ps_mask(mask, value, _mm512_setzero_ps(), _CMP_NLE_UQ);
      store(i, _mm512_maskz_mul_ps(mask, value, factor));
      kept |= static_cast<Bits>(mask) << i;
    }
    return kept;
  }

  // The upper half of each lane is the value rounded to nearest even; the lower half is of no use. No NaN.
  static __m512i rounded_up(__m512 value) {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
  }

  // As `narrow` in half.h: to nearest even, NaN stays NaN. The result is in the low half of each 32-bit lane.
  static __m512i round_to_bfloat16(__m512 value) {
    const __m512i upper = _mm512_srli_epi32(_mm512_castps_si512(value), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(_mm512_srli_epi32(rounded_up(value), 16), nan, upper, _mm512_set1_epi32(0x40));
  }
};

}  // namespace
}  // namespace jumpout
