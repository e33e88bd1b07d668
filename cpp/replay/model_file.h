// What must be true of an ONNX file before ONNX Runtime opens it.
#pragma once

#include <filesystem>
#include <set>
#include <string>

namespace jumpout::replay {

// Returns the names of the files beside it that tensors lie in. Throws UsageError if the file is no regular one or no
// ONNX model, if its functions come to more than can be written out, or if a tensor does not say once, and plainly, in
// which file beside it its values lie. The rules are those of jumpout_export/onnxfile/functions.py and data.py.
std::set<std::string> refuse_hostile(const std::filesystem::path& model);

}  // namespace jumpout::replay
