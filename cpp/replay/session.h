// An ONNX Runtime session that runs where it was asked to run. The only header of ours around ONNX Runtime's.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "golden.h"
#include "provider.h"
#include "tensor.h"

namespace jumpout::replay {

struct SessionSettings {
  Provider provider = fallback();
  int threads = 1;                     // that one request is spread over
  std::filesystem::path profile = {};  // start of the name of a profile to write until end_profile(); none if empty
};

class Session {
 public:
  // Throws UsageError if the file is no model with tensors, NotVerifiable if the provider cannot be used here.
  Session(const std::filesystem::path& model, const SessionSettings& settings);
  ~Session();

  const std::vector<Signature>& inputs() const { return inputs_; }
  const std::vector<Signature>& outputs() const { return outputs_; }

  // By input, the axis along which it has an entry per sample, as the exporter names it; none where that has one
  // length.
  const std::vector<std::optional<size_t>>& batch_axes() const { return batch_axes_; }

  // Names of the files beside the model that its weights lie in.
  const std::set<std::string>& data_files() const { return data_files_; }

  // An entry of the model's metadata.
  std::optional<std::string> metadata(const std::string& key) const;

  // Throws UsageError if the metadata says that the model is random on purpose: there is nothing to replay.
  void refuse_random() const;

  // Returns all outputs, for inputs in the model's order. Any number of threads may call it at the same time. Throws
  // CheckFailed.
  std::vector<Tensor> run(const std::vector<Tensor>& inputs) const;
  std::vector<Tensor> run(const std::vector<const Tensor*>& inputs) const;

  // Ends the profile and returns the name of its file.
  std::string end_profile();

 private:
  struct Runtime;
  std::string file_;
  std::unique_ptr<Runtime> runtime_;
  std::set<std::string> data_files_;
  std::vector<std::optional<size_t>> batch_axes_;
  std::vector<Signature> inputs_, outputs_;
};

// Version of the ONNX Runtime library, such as 1.23.2.
std::string library_version();

}  // namespace jumpout::replay
