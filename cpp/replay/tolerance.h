// How far an output may be off from its golden values: the line in the model's metadata, and the limit of each value.
#pragma once

#include <string_view>
#include <vector>

#include "tensor.h"

namespace jumpout::replay {

// Key of an output's line in the model's metadata: this and the output's name.
constexpr char kToleranceKey[] = "jumpout_export.tolerance.";

// The line that jumpout_export/tolerances.py writes. `sizes` and `limits` have an entry per channel (index of dimension
// `axis`; one in all without it); limits are in units of the size.
struct Tolerance {
  double cap = 0, median = 0;
  size_t axis = 1;
  std::vector<double> sizes, limits;
};

// Per value of the golden output, in the output's unit.
struct Allowance {
  std::vector<double> size, limit;
};

// The largest of CAP in jumpout_export/tolerances.py: what a file may ask for at most, in units of the size.
constexpr double kCeiling = 5e-2;
// No right file has larger `limits`: in a channel of rounding errors alone they come to some hundreds.
constexpr double kMostLimit = 1e4;

// Throws FormatError, for a tolerance above the ceiling too: it would let a wrong file pass.
Tolerance parse_tolerance(std::string_view line);

// The form of `Budget` in jumpout_export/tolerances.py, with the sizes of jumpout_export/verify/values/scale.py:
// a value y of channel c may be off by min(limits[c] * max(sizes[c] * f, |y|), cap * max(sizes[c] * f, |y|, median *
// f)) where f >= 1 says how much larger than usual the values of this sample are. Throws FormatError if the golden
// output has another number of channels than the tolerance.
Allowance allowance(const Tolerance& tolerance, const Tensor& golden);

}  // namespace jumpout::replay
