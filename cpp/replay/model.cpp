#include "jumpout/model.h"

#include <algorithm>

#include "errors.h"
#include "proven.h"
#include "replay.h"
#include "report.h"
#include "session.h"
#include "tensor.h"
#include "wire.h"

namespace jumpout {

using replay::UsageError;
using replay::with_errors;

namespace {

replay::Options options_of(const std::filesystem::path& file, const ModelSettings& settings) {
  replay::Options options;
  options.model = file;
  options.data = settings.golden;
  options.without_manifest = settings.without_manifest;
  options.command = "jumpout::Model::verify";
  options.provider = replay::parse_provider(settings.provider);
  if (settings.threads < 1) throw UsageError("threads must be at least 1, got " + std::to_string(settings.threads));
  options.threads = settings.threads;
  return options;
}

// The tensor for an input of the model, checked: ONNX Runtime would read past the end of one that is too short.
const Tensor& input_for(const Signature& wanted, const std::vector<Tensor>& given) {
  const Tensor& tensor = named(given, wanted.name);
  std::string problem = replay::misfit(tensor, wanted);
  try {
    const size_t bytes = replay::element_count(tensor.shape) * replay::element_size(tensor.dtype);
    if (problem.empty() && bytes != tensor.bytes.size()) {
      problem = "it holds " + std::to_string(tensor.bytes.size()) + " bytes, " +
                replay::describe(tensor.dtype, tensor.shape) + " has " + std::to_string(bytes);
    }
  } catch (const replay::FormatError& error) {
    problem = error.what();
  }
  if (!problem.empty()) throw UsageError("input `" + replay::one_line(wanted.name) + "`: " + problem);
  return tensor;
}

}  // namespace

struct Model::Parts {
  Parts(const std::filesystem::path& file, const ModelSettings& settings)
      : options(options_of(file, settings)), session(file, {options.provider, options.threads}) {
    replay::check_proven(session, options);
  }

  const replay::Options options;
  const replay::Session session;
};

std::string version() { return JUMPOUT_REPLAY_VERSION; }

Model::Model(const std::filesystem::path& file, const ModelSettings& settings)
    : parts_(with_errors([&] { return std::make_unique<Parts>(file, settings); })) {}

Model::~Model() = default;
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;

const std::vector<Signature>& Model::inputs() const { return parts_->session.inputs(); }

const std::vector<Signature>& Model::outputs() const { return parts_->session.outputs(); }

std::optional<std::string> Model::metadata(const std::string& key) const {
  return with_errors([&] { return parts_->session.metadata(key); });
}

Verification Model::verify(int repeat) const {
  return with_errors([&] {
    replay::Options options = parts_->options;
    options.repeat = std::max(repeat, 1);
    try {
      return replay::verification_of(options, replay::prove(parts_->session, options));
    } catch (const replay::CheckFailed& error) {  // a verdict: it cannot run its own data
      return replay::verification_of(options, error);
    }
  });
}

std::vector<Tensor> Model::run(const std::vector<Tensor>& inputs) const {
  return with_errors([&] {
    std::vector<const Tensor*> ordered;
    for (const Signature& wanted : parts_->session.inputs()) ordered.push_back(&input_for(wanted, inputs));
    if (inputs.size() != ordered.size()) {
      throw UsageError("the model has " + std::to_string(ordered.size()) + " inputs, got " +
                       std::to_string(inputs.size()) + " tensors");
    }
    return parts_->session.run(ordered);
  });
}

}  // namespace jumpout
