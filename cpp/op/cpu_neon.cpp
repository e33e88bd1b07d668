// NEON, as every 64-bit ARM processor has it: tiles of eight blocks, 64 elements, one 64-bit word of keep bits.
// Philox runs on two groups of four blocks: lane i of a vector holds a counter word of block i of its group. A product
// is two widening multiplies, whose low and high halves are then unzipped into two vectors.
#include <arm_neon.h>

#include "cpu_run.h"

namespace jumpout {
namespace {

struct Neon {
  using Bits = uint64_t;
  static constexpr int kBlocks = 8;
  static constexpr int kAlign = 0;  // no stores past the caches

  struct Keys {
    uint32x4_t even[kPhiloxRounds], odd[kPhiloxRounds];
  };

  static Keys keys(uint64_t seed) {
    Keys keys;
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round, key0 += kPhiloxWeyl0, key1 += kPhiloxWeyl1) {
      keys.even[round] = vdupq_n_u32(key0);
      keys.odd[round] = vdupq_n_u32(key1);
    }
    return keys;
  }

  static Bits keep(const Keys& keys, int64_t first_block, uint32_t threshold) {
    const uint16x8_t first = keep_four(keys, static_cast<uint64_t>(first_block), threshold);
    const uint16x8_t second = keep_four(keys, static_cast<uint64_t>(first_block) + 4, threshold);
    // The low and the high halves of the words hold different bits of a block's byte: their sum is the byte.
    return first_lane(vmovn_u16(vpaddq_u16(first, second)));
  }

  // Two 16-bit lanes per block; together they hold its eight keep bits.
  static uint16x8_t keep_four(const Keys& keys, uint64_t first_block, uint32_t threshold) {
    const uint64_t steps[] = {0, 1, 2, 3};
    const uint64x2_t index = vdupq_n_u64(first_block);
    const uint32x4_t low = vreinterpretq_u32_u64(vaddq_u64(index, vld1q_u64(steps)));
    const uint32x4_t high = vreinterpretq_u32_u64(vaddq_u64(index, vld1q_u64(steps + 2)));
    uint32x4_t c0 = vuzp1q_u32(low, high), c1 = vuzp2q_u32(low, high);
    uint32x4_t c2 = vdupq_n_u32(0), c3 = vdupq_n_u32(static_cast<uint32_t>(Stream::kKeep));
#pragma GCC unroll 10
    for (int round = 0; round < kPhiloxRounds; ++round) {
      const Product product0 = multiply(c0, kPhiloxMultiplier0), product1 = multiply(c2, kPhiloxMultiplier1);
      c0 = veorq_u32(veorq_u32(product1.high, c1), keys.even[round]);
      c2 = veorq_u32(veorq_u32(product0.high, c3), keys.odd[round]);
      c1 = product1.low;
      c3 = product0.low;
    }
    const uint16x8_t limit = vdupq_n_u16(static_cast<uint16_t>(threshold));
    const uint16x8_t words01 = vorrq_u16(decide(c0, limit, 0), decide(c1, limit, 2));
    return vorrq_u16(words01, vorrq_u16(decide(c2, limit, 4), decide(c3, limit, 6)));
  }

  struct Product {
    uint32x4_t low, high;
  };

  static Product multiply(uint32x4_t a, uint32_t b) {
    const uint32x4_t factor = vdupq_n_u32(b);
    const uint32x4_t first = vreinterpretq_u32_u64(vmull_u32(vget_low_u32(a), vget_low_u32(factor)));
    const uint32x4_t second = vreinterpretq_u32_u64(vmull_high_u32(a, factor));
    return {vuzp1q_u32(first, second), vuzp2q_u32(first, second)};
  }

  // Bit `bit` in the low halves of the words and the next one in the high halves, where the half is not below limit.
  static uint16x8_t decide(uint32x4_t words, uint16x8_t limit, int bit) {
    const uint16x8_t select = vreinterpretq_u16_u32(vdupq_n_u32((1u << bit) | (2u << (16 + bit))));
    return vandq_u16(vcgeq_u16(vreinterpretq_u16_u32(words), limit), select);
  }

  template <typename T>
  static int64_t count(const T* x) {
    uint8x8_t active[8];
    for (int block = 0; block < 8; ++block) active[block] = positive(x + kBlock * block);
    return __builtin_popcountll(pack(active));
  }

  template <bool kRelu, bool kStream, typename T>
  static Bits apply(const T* x, T* y, Bits keep, Compute<T> scale) {
    const uint8x8_t select = vcreate_u8(kBits);
    uint8x8_t kept[8];
#pragma GCC unroll 8
    for (int block = 0; block < 8; ++block) {
      const uint8x8_t mask = vtst_u8(vdup_n_u8(static_cast<uint8_t>(keep >> kBlock * block)), select);
      kept[block] = apply_block<kRelu>(x + kBlock * block, y + kBlock * block, mask, scale);
    }
    return kRelu ? pack(kept) : keep;
  }

  static constexpr uint64_t kBits = 0x8040201008040201;  // byte i has bit i

  // A mask of eight elements is a vector of bytes, all ones or all zeros; eight of them make a word of bits.
  static uint64_t pack(const uint8x8_t (&masks)[8]) {
    const uint8x8_t select = vcreate_u8(kBits);
    uint8x8_t sums[8];
    for (int i = 0; i < 8; ++i) sums[i] = vand_u8(masks[i], select);
    for (int size = 8; size > 1; size /= 2) {
      for (int i = 0; i < size / 2; ++i) sums[i] = vpadd_u8(sums[2 * i], sums[2 * i + 1]);
    }
    return first_lane(sums[0]);
  }

  static uint64_t first_lane(uint8x8_t bytes) { return vget_lane_u64(vreinterpret_u64_u8(bytes), 0); }

  static uint8x8_t narrow_mask(uint32x4_t first, uint32x4_t second) {
    return vmovn_u16(vcombine_u16(vmovn_u32(first), vmovn_u32(second)));
  }

  static uint8x8_t positive(const float* x) {
    return narrow_mask(vcgtzq_f32(vld1q_f32(x)), vcgtzq_f32(vld1q_f32(x + 4)));
  }

  static uint8x8_t positive(const double* x) {
    uint32x2_t masks[4];
    for (int i = 0; i < 4; ++i) masks[i] = vmovn_u64(vcgtzq_f64(vld1q_f64(x + 2 * i)));
    return narrow_mask(vcombine_u32(masks[0], masks[1]), vcombine_u32(masks[2], masks[3]));
  }

  static uint8x8_t positive(const BFloat16* x) { return positive_half(&x->bits, 0x7F80); }
  static uint8x8_t positive(const Float16* x) { return positive_half(&x->bits, 0x7C00); }

  // Positive and no NaN: bits in [1, infinity], and so (bits - 1) < infinity, unsigned.
  static uint8x8_t positive_half(const uint16_t* x, uint16_t infinity) {
    return vmovn_u16(vcltq_u16(vsubq_u16(vld1q_u16(x), vdupq_n_u16(1)), vdupq_n_u16(infinity)));
  }

  // y = mask ? x * scale : 0 on one block; returns the elements that stayed.
  template <bool kRelu>
  static uint8x8_t apply_block(const float* x, float* y, uint8x8_t mask, float scale) {
    return apply_singles<kRelu>({vld1q_f32(x), vld1q_f32(x + 4)}, mask, scale,
                                [&](float32x4_t first, float32x4_t second) {
                                  vst1q_f32(y, first);
                                  vst1q_f32(y + 4, second);
                                });
  }

  template <bool kRelu>
  static uint8x8_t apply_block(const BFloat16* x, BFloat16* y, uint8x8_t mask, float scale) {
    const uint16x8_t bits = vld1q_u16(&x->bits);
    const float32x4x2_t values = {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(bits), 16)),
                                  vreinterpretq_f32_u32(vshll_high_n_u16(bits, 16))};
    return apply_singles<kRelu>(values, mask, scale, [&](float32x4_t first, float32x4_t second) {
      vst1q_u16(&y->bits, vcombine_u16(round_to_bfloat16(first), round_to_bfloat16(second)));
    });
  }

  template <bool kRelu>
  static uint8x8_t apply_block(const Float16* x, Float16* y, uint8x8_t mask, float scale) {
    const float16x8_t halves = vreinterpretq_f16_u16(vld1q_u16(&x->bits));
    const float32x4x2_t values = {vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)};
    return apply_singles<kRelu>(values, mask, scale, [&](float32x4_t first, float32x4_t second) {
      vst1q_u16(&y->bits, vreinterpretq_u16_f16(vcombine_f16(vcvt_f16_f32(first), vcvt_f16_f32(second))));
    });
  }

  template <bool kRelu>
  static uint8x8_t apply_block(const double* x, double* y, uint8x8_t mask, double scale) {
    const int16x8_t words = vmovl_s8(vreinterpret_s8_u8(mask));
    const int32x4_t wide[] = {vmovl_s16(vget_low_s16(words)), vmovl_high_s16(words)};
    uint32x2_t kept[4];
    for (int i = 0; i < 4; ++i) {
      const int32x2_t pair = i % 2 ? vget_high_s32(wide[i / 2]) : vget_low_s32(wide[i / 2]);
      uint64x2_t keep = vreinterpretq_u64_s64(vmovl_s32(pair));
      const float64x2_t value = vld1q_f64(x + 2 * i);
      if (kRelu) keep = vbicq_u64(keep, vclezq_f64(value));
      const float64x2_t scaled = vmulq_n_f64(value, scale);
      vst1q_f64(y + 2 * i, vreinterpretq_f64_u64(vandq_u64(keep, vreinterpretq_u64_f64(scaled))));
      kept[i] = vmovn_u64(keep);
    }
    return kRelu ? narrow_mask(vcombine_u32(kept[0], kept[1]), vcombine_u32(kept[2], kept[3])) : mask;
  }

  template <bool kRelu, typename Store>
  static uint8x8_t apply_singles(float32x4x2_t values, uint8x8_t mask, float scale, const Store& store) {
    const int16x8_t words = vmovl_s8(vreinterpret_s8_u8(mask));
    uint32x4_t keep[] = {vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(words))),
                         vreinterpretq_u32_s32(vmovl_high_s16(words))};
    float32x4_t result[2];
    for (int i = 0; i < 2; ++i) {
      if (kRelu) keep[i] = vbicq_u32(keep[i], vclezq_f32(values.val[i]));  // false for NaN: it passes
      const uint32x4_t scaled = vreinterpretq_u32_f32(vmulq_n_f32(values.val[i], scale));
      result[i] = vreinterpretq_f32_u32(vandq_u32(keep[i], scaled));
    }
    store(result[0], result[1]);
    return kRelu ? narrow_mask(keep[0], keep[1]) : mask;
  }

  // To nearest even, as `narrow` in half.h, but for products of bfloat16 numbers only: a NaN among them has no bits
  // below the sixteenth, so rounding cannot turn it into a number.
  static uint16x4_t round_to_bfloat16(float32x4_t value) {
    const uint32x4_t bits = vreinterpretq_u32_f32(value);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    return vshrn_n_u32(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7FFF)), odd), 16);
  }
};

}  // namespace

extern const CpuKernels kNeonKernels;  // for cpu_select.cpp
const CpuKernels kNeonKernels = make_kernels<Neon>("neon");

}  // namespace jumpout
