// Which files were proven together: the manifest that an export leaves beside the model.
#pragma once

#include <filesystem>
#include <map>
#include <set>
#include <string>

#include "golden.h"

namespace jumpout::replay {

// The rules are those of jumpout_export/onnxfile/manifest.py. Every digest is a sha256 in hex.
class Manifest {
 public:
  // Reads `model.manifest.json` beside `model.onnx`. Throws CheckFailed if there is none, or it cannot be read.
  explicit Manifest(const std::filesystem::path& model);

  // Throws CheckFailed, naming the file, if the model, or the weights in the files of these names beside it, are not
  // those that were proven.
  void check_model(const std::filesystem::path& model, const std::set<std::string>& data) const;

  // The same of golden data, as it was read.
  void check_golden(const GoldenSet& set) const;

 private:
  void check(const std::filesystem::path& file, const std::map<std::string, std::string>& wanted,
             const std::string& found) const;

  std::filesystem::path place_;
  std::string model_;
  std::map<std::string, std::string> data_, golden_;  // by name
};

}  // namespace jumpout::replay
