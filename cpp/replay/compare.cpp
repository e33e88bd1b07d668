#include "compare.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

namespace jumpout::replay {
namespace {

// `[3,5]` for the value that is number `place` in row-major order.
std::string index_text(const std::vector<int64_t>& shape, size_t place) {
  std::string text;
  for (size_t axis = shape.size(); axis-- > 0;) {
    const size_t length = static_cast<size_t>(shape[axis]);
    text = std::to_string(place % length) + (text.empty() ? "" : ",") + text;
    place /= length;
  }
  return "[" + text + "]";
}

double error_at(const Tensor& golden, const Tensor& got, size_t i) {
  if (is_floating_point(golden.dtype)) return std::abs(value_at(got, i) - value_at(golden, i));
  const size_t size = element_size(golden.dtype);
  return std::memcmp(golden.bytes.data() + i * size, got.bytes.data() + i * size, size) ? 1.0 : 0.0;
}

// No error is 0, and any error where nothing is allowed is infinite.
double relative(double error, double unit) {
  if (error == 0) return 0;
  return unit > 0 ? error / unit : std::numeric_limits<double>::infinity();
}

size_t count_non_finite(const Tensor& tensor) {
  if (!is_floating_point(tensor.dtype)) return 0;
  size_t found = 0;
  for (size_t i = 0; i < tensor.count(); ++i) found += !std::isfinite(value_at(tensor, i));
  return found;
}

std::string format(const char* pattern, double one, double two) {
  char text[120];
  std::snprintf(text, sizeof(text), pattern, one, two);
  return text;
}

}  // namespace

Comparison compare(const Tensor& golden, const Tensor& got, const Tolerance& tolerance) {
  const bool same = golden.dtype == got.dtype && golden.shape == got.shape;
  return compare(golden, got, same && !count_non_finite(golden) ? allowance(tolerance, golden) : Allowance{});
}

Comparison compare(const Tensor& golden, const Tensor& got, const Allowance& allowed) {
  Comparison result;
  if (golden.dtype != got.dtype || golden.shape != got.shape) {
    result.problem = "it is " + describe(got.dtype, got.shape) + ", golden is " + describe(golden.dtype, golden.shape);
    return result;
  }
  if (golden.count() == 0) {
    result.problem = "nothing was compared: it has no values";
    return result;
  }
  const size_t bad_golden = count_non_finite(golden), bad_got = count_non_finite(got);
  if (bad_golden + bad_got > 0) {
    result.problem = std::to_string(bad_got) + " values are NaN or infinite, " + std::to_string(bad_golden) + " golden";
    return result;
  }
  size_t place = 0;
  for (size_t i = 0; i < golden.count(); ++i) {
    const double error = error_at(golden, got, i), share = relative(error, allowed.limit[i]);
    result.max_abs = std::max(result.max_abs, error);
    result.max_rel = std::max(result.max_rel, relative(error, allowed.size[i]));
    if (share > result.share) {
      result.share = share;
      place = i;
    }
  }
  result.error = error_at(golden, got, place);
  result.limit = allowed.limit[place];
  result.index = index_text(golden.shape, place);
  result.passed = result.share <= 1;
  if (!result.passed) {
    result.problem =
        "at " + result.index + " it is off by" + format(" %.3g, allowed are %.3g", result.error, result.limit);
  }
  return result;
}

}  // namespace jumpout::replay
