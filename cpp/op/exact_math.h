// Logarithm, exponential and half-normal quantile from additions, multiplications, divisions and square roots alone.
// IEEE 754 rounds those the same everywhere, libm and the CUDA math library do not: with these, CPU and GPU sample the
// same rate from the same seed to the last bit. Compile without fused multiply-add (-ffp-contract=off, -fmad=false).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "philox.h"

namespace jumpout {

JUMPOUT_HD uint64_t bits_of(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

JUMPOUT_HD double from_bits(uint64_t bits) {
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// Polynomial with coefficients from the highest power down.
template <int kCount>
JUMPOUT_HD double horner(const double (&coefficients)[kCount], double r) {
  double sum = coefficients[0];
  for (int i = 1; i < kCount; ++i) sum = sum * r + coefficients[i];
  return sum;
}

// ln(x) of a positive normal number, to about 2 ulp: x = 2^e m, m in [sqrt(1/2), sqrt(2)), ln m = 2
// artanh((m-1)/(m+1)).
JUMPOUT_HD double exact_log(double x) {
  int exponent = static_cast<int>(bits_of(x) >> 52) - 1023;
  double m = from_bits((bits_of(x) & 0x000FFFFFFFFFFFFFull) | 0x3FF0000000000000ull);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    ++exponent;
  }
  const double f = (m - 1.0) / (m + 1.0), f2 = f * f;
  double series = 0.0;
  for (int k = 23; k >= 1; k -= 2) series = series * f2 + 1.0 / k;
  return exponent * 0.6931471805599453 + 2.0 * f * series;
}

// e^x for x >= 0, to about 2 ulp; infinity above 709.
JUMPOUT_HD double exact_exp(double x) {
  if (!(x < 709.0)) return from_bits(0x7FF0000000000000ull);
  const int n = static_cast<int>(x * 1.4426950408889634 + 0.5);
  // ln 2 in two parts: n times the first is exact.
  const double r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  // 1 / k!, k from 14 down
  const double c[] = {1.1470745597729725e-11,
                      1.6059043836821613e-10,
                      2.08767569878681e-09,
                      2.505210838544172e-08,
                      2.755731922398589e-07,
                      2.7557319223985893e-06,
                      2.48015873015873e-05,
                      0.0001984126984126984,
                      0.001388888888888889,
                      0.008333333333333333,
                      0.041666666666666664,
                      0.16666666666666666,
                      0.5,
                      1.0,
                      1.0};
  return horner(c, r) * from_bits(static_cast<uint64_t>(n + 1023) << 52);
}

// Quantile of |N(0, 1)| at u in (0, 1). Wichura, "Algorithm AS 241", Applied Statistics 37 (1988), routine PPND16.
JUMPOUT_HD double half_normal_quantile(double u) {
  const double offset = 0.5 * u;  // |N| at u is the normal quantile at 1/2 + u/2
  if (offset <= 0.425) {
    const double a[] = {2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4,
                        4.5921953931549871457e4, 1.3731693765509461125e4, 1.9715909503065514427e3,
                        1.3314166789178437745e2, 3.3871328727963666080e0};
    const double b[] = {
        5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
        5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0};
    const double r = 0.180625 - offset * offset;
    return offset * horner(a, r) / horner(b, r);
  }
  const double r = sqrt(-exact_log(0.5 - offset));
  if (r <= 5.0) {
    const double c[] = {7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1,
                        1.27045825245236838258e0,  3.64784832476320460504e0,  5.76949722146069140550e0,
                        4.63033784615654529590e0,  1.42343711074968357734e0};
    const double d[] = {
        1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
        6.89767334985100004550e-1, 1.67638483018380384940e0,  2.05319162663775882187e0,  1.0};
    return horner(c, r - 1.6) / horner(d, r - 1.6);
  }
  const double e[] = {2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3,
                      2.65321895265761230930e-2, 2.96560571828504891230e-1, 1.78482653991729133580e0,
                      5.46378491116411436990e0,  6.65790464350110377720e0};
  const double f[] = {
      2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
      1.48753612908506148525e-2,  1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0};
  return horner(e, r - 5.0) / horner(f, r - 5.0);
}

}  // namespace jumpout
