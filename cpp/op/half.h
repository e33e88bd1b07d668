// float <-> bfloat16 and float16, rounding to nearest even, for compilers and processors without those types.
#pragma once

#include <cstdint>
#include <cstring>

#include "philox.h"

namespace jumpout {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

JUMPOUT_HD uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

JUMPOUT_HD float bits_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

JUMPOUT_HD float widen(BFloat16 x) { return bits_float(static_cast<uint32_t>(x.bits) << 16); }

JUMPOUT_HD float widen(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7FFF;
  if (magnitude >= 0x7C00) return bits_float(sign | 0x7F800000 | (magnitude & 0x3FF) << 13);  // infinity, NaN
  if (magnitude >= 0x0400) return bits_float(sign | ((magnitude << 13) + 0x38000000));        // normal
  const float subnormal = static_cast<float>(magnitude) * 5.9604644775390625e-8f;             // units of 2^-24
  return sign ? -subnormal : subnormal;
}

JUMPOUT_HD float widen(float x) { return x; }
JUMPOUT_HD double widen(double x) { return x; }

JUMPOUT_HD void narrow(float x, BFloat16* out) {
  const uint32_t bits = float_bits(x);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) {
    out->bits = static_cast<uint16_t>(bits >> 16 | 0x0040);  // keep NaN a NaN
  } else {
    out->bits = static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
  }
}

JUMPOUT_HD void narrow(float x, Float16* out) {
  const uint32_t bits = float_bits(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
  uint32_t half;
  if (magnitude > 0x7F800000) {
    half = 0x7E00 | (magnitude >> 13 & 0x3FF);  // quiet, with its payload, as the hardware does
  } else if (magnitude >= 0x477FF000) {         // 65520 and above round to infinity
    half = 0x7C00;
  } else if (magnitude >= 0x38800000) {  // normal: 2^-14 and above
    half = (magnitude - 0x38000000 + 0xFFF + (magnitude >> 13 & 1)) >> 13;
  } else {  // adding 0.5 lets the FPU round to units of 2^-24, to nearest even
    half = float_bits(bits_float(magnitude) + 0.5f) - 0x3F000000;
  }
  out->bits = static_cast<uint16_t>(sign | half);
}

JUMPOUT_HD void narrow(float x, float* out) { *out = x; }
JUMPOUT_HD void narrow(double x, double* out) { *out = x; }

}  // namespace jumpout
