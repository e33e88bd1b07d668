#include "request.h"

#include <algorithm>
#include <optional>

#include "errors.h"
#include "platform.h"
#include "tensor.h"
#include "wire.h"

namespace jumpout::replay {
namespace {

using Axis = std::optional<size_t>;

size_t length(const Tensor& tensor, size_t axis) { return static_cast<size_t>(tensor.shape[axis]); }

// Entry i of the result is entry i modulo `rows` of the tensor, along an axis; without one the tensor stays as it is.
template <typename Value>
std::vector<Value> repeated(const std::vector<Value>& values, const Tensor& like, size_t axis, size_t count) {
  const size_t rows = length(like, axis);
  size_t outer = 1;
  for (size_t i = 0; i < axis; ++i) outer *= length(like, i);
  const size_t row = values.size() / (outer * rows);
  std::vector<Value> result;
  result.reserve(outer * count * row);
  for (size_t block = 0; block < outer; ++block) {
    for (size_t i = 0; i < count; ++i) {
      const auto start = values.begin() + static_cast<std::ptrdiff_t>((block * rows + i % rows) * row);
      result.insert(result.end(), start, start + static_cast<std::ptrdiff_t>(row));
    }
  }
  return result;
}

Tensor repeated(const Tensor& tensor, const Axis& axis, size_t count) {
  if (!axis) return tensor;
  Tensor result{tensor.name, tensor.dtype, tensor.shape, repeated(tensor.bytes, tensor, *axis, count)};
  result.shape[*axis] = static_cast<int64_t>(count);
  return result;
}

// Along which axis an answer has an entry for each sample; none if it is as long as the golden output.
Axis axis_of_answer(const Tensor& answer, const Tensor& golden, size_t rows, size_t count) {
  if (answer.shape == golden.shape) return std::nullopt;
  for (size_t axis = 0; axis < golden.shape.size() && answer.shape.size() == golden.shape.size(); ++axis) {
    std::vector<int64_t> expected = golden.shape;
    expected[axis] = static_cast<int64_t>(count);
    if (length(golden, axis) == rows && answer.shape == expected) return axis;
  }
  throw CheckFailed("output `" + one_line(golden.name) + "` of a batch of " + std::to_string(count) + " is " +
                    describe(answer.dtype, answer.shape) + ", of " + std::to_string(rows) + " it is " +
                    describe(golden.dtype, golden.shape));
}

// Of how many samples a golden set is: the length of the axes that are open for them. Where the batch size is fixed,
// the first length of an input that the first output has too.
size_t samples_in(const GoldenSet& set, const std::vector<Axis>& axes) {
  Axis found;
  for (size_t i = 0; i < axes.size(); ++i) {
    if (!axes[i]) continue;
    if (found && *found != length(set.inputs[i], *axes[i])) {
      throw UsageError(shown(set.folder) + ": its inputs have different numbers of samples, " + std::to_string(*found) +
                       " and " + std::to_string(length(set.inputs[i], *axes[i])));
    }
    found = length(set.inputs[i], *axes[i]);
  }
  for (const Tensor& input : set.inputs) {
    const bool both = !input.shape.empty() && !set.outputs.empty() && !set.outputs[0].shape.empty();
    if (!found && both && input.shape[0] == set.outputs[0].shape[0]) found = length(input, 0);
  }
  const bool empty = std::any_of(set.outputs.begin(), set.outputs.end(), [](const Tensor& t) { return !t.count(); });
  if (found == size_t{0} || empty) {
    throw UsageError(shown(set.folder) + ": it holds no samples, so there is nothing to send");
  }
  return found.value_or(1);
}

}  // namespace

std::vector<Request> make_requests(const Session& session, const std::vector<GoldenSet>& sets,
                                   const std::vector<Tolerance>& tolerances, const std::vector<int>& batches) {
  const std::vector<Axis>& axes = session.batch_axes();
  const bool is_open = std::any_of(axes.begin(), axes.end(), [](const Axis& axis) { return axis.has_value(); });
  std::vector<Request> requests;
  for (const GoldenSet& set : sets) {
    const size_t rows = samples_in(set, axes);
    std::vector<Allowance> allowed;
    for (size_t i = 0; i < set.outputs.size(); ++i) {
      try {
        allowed.push_back(allowance(tolerances[i], set.outputs[i]));
      } catch (const FormatError& error) {
        throw UsageError(shown(set.folder) + ": output `" + one_line(set.outputs[i].name) + "`: " + error.what());
      }
    }
    for (const int batch : is_open ? batches : std::vector<int>{static_cast<int>(rows)}) {
      const size_t count = static_cast<size_t>(batch);
      Request request{batch, {}, {}, {}, {}};
      for (size_t i = 0; i < axes.size(); ++i) request.inputs.push_back(repeated(set.inputs[i], axes[i], count));
      request.alone = session.run(request.inputs);
      for (size_t i = 0; i < set.outputs.size(); ++i) {
        const Tensor& golden = set.outputs[i];
        const Axis axis = axis_of_answer(request.alone[i], golden, rows, count);
        request.golden.push_back(repeated(golden, axis, count));
        request.allowed.push_back(axis ? Allowance{repeated(allowed[i].size, golden, *axis, count),
                                                   repeated(allowed[i].limit, golden, *axis, count)}
                                       : allowed[i]);
      }
      requests.push_back(std::move(request));
    }
  }
  return requests;
}

}  // namespace jumpout::replay
