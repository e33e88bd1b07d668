// An exported model whose proof is checked before it serves.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "jumpout/error.h"
#include "jumpout/tensor.h"
#include "jumpout/verification.h"

namespace jumpout {

struct ModelSettings {
  std::string provider = "cpu";       // or `cuda`: every node must run there
  int threads = 1;                    // that one request is spread over
  std::filesystem::path golden = {};  // a folder test_data_set_*, or one that holds such folders; where the model is
  bool without_manifest = false;      // whether a file that no manifest describes is good enough
};

class Model {
 public:
  // Loads a model that jumpout-export proved and published. Throws Error if its metadata do not say so, if it or a file
  // of weights is not the one that the manifest beside it names, or if ONNX Runtime cannot load it.
  explicit Model(const std::filesystem::path& file, const ModelSettings& settings = {});
  ~Model();
  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;

  const std::vector<Signature>& inputs() const;
  const std::vector<Signature>& outputs() const;

  // An entry of the model's metadata, such as `jumpout_export.folded`.
  std::optional<std::string> metadata(const std::string& key) const;

  // Repeats the proof: this session, as it serves, runs the golden inputs and must give the golden outputs within the
  // tolerance in the metadata, the same bits each of `repeat` times more. Throws Error if there is nothing to compare.
  Verification verify(int repeat = 1) const;

  // Returns all outputs. `inputs` has one tensor for each of the model's, by name, in any order. Any number of threads
  // may call it at the same time. Throws Error if a name, dtype or shape is not the model's, or if it cannot be run.
  std::vector<Tensor> run(const std::vector<Tensor>& inputs) const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

// Of this library, such as 0.1.0.
std::string version();

}  // namespace jumpout
