#include "tolerance.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <locale>
#include <sstream>
#include <string>

#include "wire.h"

namespace jumpout::replay {
namespace {

constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();
constexpr double kMostAxes = 64;

// Not by std::from_chars, which some standard libraries have for integers only; nor by strtod, which asks the locale.
double parse_number(const std::string& text) {
  std::istringstream stream(text);
  stream.imbue(std::locale::classic());
  double number = 0;
  const bool plain = !text.empty() && text.find_first_not_of("0123456789.eE+-") == std::string::npos && text[0] != '+';
  if (!plain || !(stream >> number) || stream.peek() != EOF || !std::isfinite(number) || number < 0) {
    throw FormatError("not a number: " + text);
  }
  return number;
}

std::vector<double> parse_numbers(std::string_view text) {
  std::vector<double> numbers;
  while (true) {
    const size_t end = std::min(text.find(','), text.size());
    numbers.push_back(parse_number(std::string(text.substr(0, end))));
    if (end == text.size()) return numbers;
    text.remove_prefix(end + 1);
  }
}

// Takes `name=1,2,3` from the front of the line.
std::vector<double> take(std::string_view& line, std::string_view name) {
  if (line.substr(0, name.size()) != name) throw FormatError("`" + std::string(name) + "` is missing");
  const size_t end = std::min(line.find(' '), line.size());
  const std::vector<double> numbers = parse_numbers(line.substr(name.size(), end - name.size()));
  line.remove_prefix(std::min(end + 1, line.size()));
  return numbers;
}

// The lower of the two middle values, or the upper; missing values do not count. Reorders.
double median(std::vector<double>& values, bool upper) {
  values.erase(std::remove_if(values.begin(), values.end(), [](double value) { return std::isnan(value); }),
               values.end());
  if (values.empty()) return kMissing;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>((values.size() - !upper) / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// A mask such as -1e9, or a clipped value: the largest magnitude, if it occurs twice and there are others.
double masked_value(const std::vector<double>& magnitudes) {
  const double largest = *std::max_element(magnitudes.begin(), magnitudes.end());
  const bool twice = std::count(magnitudes.begin(), magnitudes.end(), largest) > 1;
  const bool others = std::any_of(magnitudes.begin(), magnitudes.end(),
                                  [largest](double value) { return value > 0 && value != largest; });
  return twice && others ? largest : kMissing;
}

[[noreturn]] void refuse(const char* name, double value, double most) {
  char text[120];
  std::snprintf(text, sizeof(text), "`%s` is %g, above %g no file is told from a wrong one", name, value, most);
  throw FormatError(text);
}

}  // namespace

Tolerance parse_tolerance(std::string_view line) {
  Tolerance tolerance;
  tolerance.cap = take(line, "cap=").front();
  tolerance.median = take(line, "median=").front();
  if (line.substr(0, 5) == "axis=") {
    const double axis = take(line, "axis=").front();
    if (axis > kMostAxes || axis != std::floor(axis)) throw FormatError("`axis` is no dimension");
    tolerance.axis = static_cast<size_t>(axis);
  }
  tolerance.sizes = take(line, "sizes=");
  tolerance.limits = take(line, "limits=");
  if (!line.empty()) throw FormatError("there is more than expected");
  if (tolerance.sizes.size() != tolerance.limits.size()) throw FormatError("`sizes` and `limits` differ in length");
  if (tolerance.cap > kCeiling) refuse("cap", tolerance.cap, kCeiling);
  for (const double limit : tolerance.limits) {
    if (limit > kMostLimit) refuse("limits", limit, kMostLimit);
  }
  return tolerance;
}

Allowance allowance(const Tolerance& tolerance, const Tensor& golden) {
  const size_t count = golden.count();
  if (!is_floating_point(golden.dtype)) return {std::vector<double>(count, 1.0), std::vector<double>(count, 0.0)};
  if (count == 0) return {};
  // An output with one value per sample has one channel; one whose first dimension is the channels is one sample.
  const size_t axis = tolerance.axis, rank = golden.shape.size();
  if (axis >= std::max<size_t>(rank, 2))
    throw FormatError("the golden output has no dimension " + std::to_string(axis));
  const size_t samples = rank == 0 || axis == 0 ? 1 : static_cast<size_t>(golden.shape[0]);
  const size_t channels = axis < rank ? static_cast<size_t>(golden.shape[axis]) : 1;
  size_t stride = 1;
  for (size_t i = axis + 1; i < rank; ++i) stride *= static_cast<size_t>(golden.shape[i]);
  if (channels != tolerance.sizes.size()) {
    throw FormatError("the tolerance in the model is for " + std::to_string(tolerance.sizes.size()) +
                      " channels, the golden output has " + std::to_string(channels));
  }
  std::vector<double> magnitudes(count);
  for (size_t i = 0; i < count; ++i) magnitudes[i] = std::abs(value_at(golden, i));
  const double masked = masked_value(magnitudes);
  double largest = 0;
  for (const double value : magnitudes) {
    if (value != masked) largest = std::max(largest, value);
  }

  Allowance result{std::vector<double>(count), std::vector<double>(count)};
  for (size_t sample = 0; sample < samples; ++sample) {
    const size_t begin = sample * (count / samples), end = begin + count / samples;
    std::vector<std::vector<double>> kept(channels);
    for (size_t i = begin; i < end; ++i) {
      if (magnitudes[i] > 0 && magnitudes[i] != masked) kept[i / stride % channels].push_back(magnitudes[i]);
    }
    std::vector<double> ratios(channels, kMissing);
    for (size_t channel = 0; channel < channels; ++channel) {
      if (tolerance.sizes[channel] > 0) ratios[channel] = median(kept[channel], false) / tolerance.sizes[channel];
    }
    const double factor = std::fmax(1.0, median(ratios, true));  // fmax: 1 where all are missing
    for (size_t i = begin; i < end; ++i) {
      const size_t channel = i / stride % channels;
      const double size = std::max(tolerance.sizes[channel] * factor, magnitudes[i]);
      result.size[i] = size;
      result.limit[i] =
          std::min({tolerance.limits[channel] * size, tolerance.cap * std::max(size, tolerance.median * factor),
                    tolerance.cap * std::max(largest, magnitudes[i])});
    }
  }
  return result;
}

}  // namespace jumpout::replay
