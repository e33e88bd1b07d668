// Compares an output with its golden values.
#pragma once

#include <string>

#include "tensor.h"
#include "tolerance.h"

namespace jumpout::replay {

struct Comparison {
  double max_abs = 0;  // largest error, in the output's unit
  double max_rel = 0;  // largest error in units of the value's size
  double error = 0;    // at the value that is closest to its limit, or furthest beyond
  double limit = 0;    // there
  double share = 0;    // of that limit
  std::string index;   // of that value, such as `[3,5]`
  bool passed = false;
  std::string problem;  // why it failed; empty if it passed
};

// Shape and dtype must agree, every value must be finite, and there must be one. Throws FormatError if the tolerance is
// for another output.
Comparison compare(const Tensor& golden, const Tensor& got, const Tolerance& tolerance);

// The same with the allowance of each value.
Comparison compare(const Tensor& golden, const Tensor& got, const Allowance& allowed);

}  // namespace jumpout::replay
