// How long requests took, in memory that does not grow with their number.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace jumpout::replay {

// Counts durations in classes whose bounds are 1/128 of a power of two apart: what it says is right to 0.4%.
class Latencies {
 public:
  // From a nanosecond to eighteen minutes; what is beyond counts as that.
  void add(double milliseconds) { ++counts_[class_of(milliseconds)]; }

  void add(const Latencies& others) {
    for (size_t i = 0; i < kClasses; ++i) counts_[i] += others.counts_[i];
  }

  int64_t count() const {
    int64_t all = 0;
    for (const int64_t count : counts_) all += count;
    return all;
  }

  // The duration that a share of all, in (0, 1], does not exceed (the nearest rank); 0 if there is none.
  double percentile(double share) const {
    const double rank = std::ceil(share * static_cast<double>(count()));
    int64_t seen = 0;
    for (size_t i = 0; i < kClasses; ++i) {
      seen += counts_[i];
      if (counts_[i] > 0 && static_cast<double>(seen) >= rank) return middle_of(i);
    }
    return 0;
  }

 private:
  static constexpr int kPerOctave = 128, kLowest = -20, kOctaves = 40;  // 2^-20 ms to 2^20 ms
  static constexpr size_t kClasses = static_cast<size_t>(kPerOctave) * kOctaves;

  static size_t class_of(double milliseconds) {
    if (!(milliseconds > 0)) return 0;
    int exponent = 0;
    const double fraction = std::frexp(milliseconds, &exponent);  // in [1/2, 1)
    const double place = (exponent - 1 - kLowest + (2 * fraction - 1)) * kPerOctave;
    if (!(place > 0)) return 0;
    return place < static_cast<double>(kClasses) ? static_cast<size_t>(place) : kClasses - 1;
  }

  static double middle_of(size_t index) {
    const double octave = std::floor(static_cast<double>(index) / kPerOctave);
    const double within = (static_cast<double>(index) + 0.5) / kPerOctave - octave;
    return std::ldexp(1 + within, static_cast<int>(octave) + kLowest);
  }

  std::array<int64_t, kClasses> counts_{};
};

}  // namespace jumpout::replay
