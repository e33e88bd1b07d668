// What jumpout does to one call, one block of eight elements and one element; the same code on the CPU and on the GPU.
// Wang, Zhou, Bilmes, "Jumpout: Improved Dropout for Deep Neural Networks with ReLUs", ICML 2019, Algorithm 1:
//   q = mean(x > 0);  p = min(p_min + |N(0, sigma)|, p_max);  p' = p / q;  y = Bernoulli(1 - p') * (1 - p')^-alpha * x
#pragma once

#include <cstdint>

#include "exact_math.h"
#include "philox.h"

namespace jumpout {

enum class DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };

struct Settings {
  double p;  // constant rate in [0, 1); negative: sample it
  double sigma, p_min, p_max;
  double rate_cap;  // p' never exceeds it; 1 means no cap
  double alpha;
  bool normalize;  // p' = p / q instead of p
  bool clip;       // rate = clamp(|N|, p_min, p_max) instead of min(p_min + |N|, p_max)
  bool relu;
};

// One row of the statistics tensor. A row is the whole tensor, or one sample.
struct Stats {
  double q, p, p_prime, scale, capped;
};

constexpr int kBlock = 8;           // elements per Philox call: 16 random bits each
constexpr double kSteps = 65536.0;  // keep decisions compare 16 random bits with a threshold
constexpr uint32_t kMaxThreshold = 65535;

JUMPOUT_HD double sample_rate(const Settings& settings, uint64_t seed, int64_t row) {
  if (settings.p >= 0.0) return settings.p;
  const Philox random = philox(seed, static_cast<uint64_t>(row), Stream::kRate);
  const uint64_t bits = (static_cast<uint64_t>(random.word[1]) << 20) | (random.word[0] >> 12);  // 52 bits
  const double u = (static_cast<double>(bits) + 0.5) * 2.220446049250313e-16;                    // 2^-52, in (0, 1)
  const double noise = settings.sigma * half_normal_quantile(u);
  if (settings.clip) return noise < settings.p_min ? settings.p_min : noise > settings.p_max ? settings.p_max : noise;
  const double rate = settings.p_min + noise;
  return rate < settings.p_max ? rate : settings.p_max;
}

// Elements whose 16 random bits are below the threshold are dropped, so p' is a multiple of 2^-16.
JUMPOUT_HD uint32_t threshold_of(double p_prime) { return static_cast<uint32_t>(p_prime * kSteps + 0.5); }

JUMPOUT_HD Stats row_stats(const Settings& settings, uint64_t seed, int64_t row, int64_t active, int64_t count) {
  Stats stats;
  stats.q = count > 0 ? static_cast<double>(active) / static_cast<double>(count) : 0.0;
  stats.p = sample_rate(settings, seed, row);
  double rate = stats.p;
  if (settings.normalize) rate = stats.q > 0.0 ? stats.p / stats.q : 0.0;  // nothing active: nothing to drop
  stats.capped = rate > settings.rate_cap ? 1.0 : 0.0;
  if (rate > settings.rate_cap) rate = settings.rate_cap;
  uint32_t threshold = threshold_of(rate);
  if (threshold > kMaxThreshold) threshold = kMaxThreshold;
  stats.p_prime = threshold / kSteps;
  // The scale belongs to the quantised rate, so that quantising adds no bias.
  const double keep = 1.0 - stats.p_prime;
  stats.scale = settings.alpha == 1.0 ? 1.0 / keep : exact_exp(-settings.alpha * exact_log(keep));
  return stats;
}

// Bit i is set if element 8 * block + i is kept.
JUMPOUT_HD uint32_t keep_byte(uint64_t seed, int64_t block, uint32_t threshold) {
  const Philox random = philox(seed, static_cast<uint64_t>(block), Stream::kKeep);
  uint32_t byte = 0;
  for (int i = 0; i < kBlock; ++i) {
    const uint32_t decision = (random.word[i / 2] >> (16 * (i % 2))) & 0xFFFF;
    byte |= static_cast<uint32_t>(decision >= threshold) << i;
  }
  return byte;
}

}  // namespace jumpout
