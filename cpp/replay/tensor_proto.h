// Reads one ONNX TensorProto, the message in `input_0.pb` and `output_0.pb`.
#pragma once

#include <string_view>

#include "tensor.h"

namespace jumpout::replay {

// Strict: an unknown field, a second kind of data, a length that does not fit the shape or a number that does not fit
// the dtype is a FormatError. A file that is read is a tensor, not something that happens to parse.
Tensor parse_tensor(std::string_view data);

}  // namespace jumpout::replay
