// Finds and reads golden data in ONNX's own layout: test_data_set_*/input_*.pb and output_*.pb.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "tensor.h"

namespace jumpout::replay {

struct GoldenSet {
  std::filesystem::path folder;
  std::string name;  // of the folder, such as `test_data_set_0`
  std::vector<Tensor> inputs, outputs;
  std::map<std::string, std::string> digests;  // of the files as they were read, by name
};

// `folder` holds the sets, or is one. All are read; each must have exactly the model's inputs and outputs, in its
// order, with its names, dtypes and fixed lengths. Throws UsageError naming the file.
std::vector<GoldenSet> read_golden(const std::filesystem::path& folder, const std::vector<Signature>& inputs,
                                   const std::vector<Signature>& outputs);

}  // namespace jumpout::replay
