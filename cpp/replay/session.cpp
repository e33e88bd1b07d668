#include "session.h"

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <map>
#include <string_view>

#include "errors.h"
#include "model_file.h"
#include "platform.h"

namespace jumpout::replay {
namespace {

static_assert(static_cast<int>(DType::kFloat32) == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
static_assert(static_cast<int>(DType::kBfloat16) == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16);

// Fetches the interface the headers describe; a newer library still has it, an older one does not.
const OrtApi& api() {
  static const OrtApi& found = []() -> const OrtApi& {
    const OrtApi* const api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (!api) {
      throw NotVerifiable("the ONNX Runtime library " + library_version() + " is older than the headers, 1." +
                          std::to_string(ORT_API_VERSION) + "; build against its own");
    }
    Ort::InitApi(api);
    return *api;
  }();
  return found;
}

// Silent: every problem comes back as an exception too.
Ort::Env& environment() {
  api();
  static Ort::Env env(ORT_LOGGING_LEVEL_FATAL, "jumpout-replay");
  return env;
}

void append_cuda(Ort::SessionOptions& options) {
  // A node that the provider lacks, or one that computes a shape, then runs on the CPU: see `misplaced`.
  OrtCUDAProviderOptionsV2* cuda = nullptr;
  Ort::ThrowOnError(api().CreateCUDAProviderOptions(&cuda));
  const std::unique_ptr<OrtCUDAProviderOptionsV2, decltype(api().ReleaseCUDAProviderOptions)> owner(
      cuda, api().ReleaseCUDAProviderOptions);
  // TensorFloat-32 rounds inputs to 10 bits and is on by default; an exhaustive search is not repeatable.
  const char* const keys[] = {"use_tf32", "cudnn_conv_algo_search"};
  const char* const values[] = {"0", "HEURISTIC"};
  Ort::ThrowOnError(api().UpdateCUDAProviderOptions(cuda, keys, values, std::size(keys)));
  options.AppendExecutionProvider_CUDA_V2(*cuda);
}

// By ONNX Runtime's name; the fallback needs none.
const std::map<std::string, void (*)(Ort::SessionOptions&)> kAppend = {{"CUDAExecutionProvider", append_cuda}};

void append(const Provider& provider, Ort::SessionOptions& options) {
  const std::vector<std::string> available = Ort::GetAvailableProviders();
  if (std::find(available.begin(), available.end(), provider.name) == available.end()) {
    throw NotVerifiable("the ONNX Runtime library " + library_version() + " has no " + provider.name +
                        "; build against one that has, such as the one in the wheel onnxruntime-gpu");
  }
  kAppend.at(provider.name)(options);
}

Signature signature(const std::string& model, const std::string& name, const Ort::TypeInfo& info) {
  if (info.GetONNXType() != ONNX_TYPE_TENSOR) throw UsageError(model + ": `" + one_line(name) + "` is not a tensor");
  const auto tensor = info.GetTensorTypeAndShapeInfo();
  if (!is_known(tensor.GetElementType())) {
    throw UsageError(model + ": `" + one_line(name) + "` does not hold numbers");
  }
  return {name, static_cast<DType>(tensor.GetElementType()), tensor.GetShape()};
}

// `BATCH` in jumpout_export/model/axes.py.
constexpr std::string_view kBatch = "batch";

std::optional<size_t> batch_axis(const Ort::TypeInfo& info) {
  const auto tensor = info.GetTensorTypeAndShapeInfo();
  std::vector<const char*> names(tensor.GetDimensionsCount());
  // The C++ interface has had two forms of this.
  Ort::ThrowOnError(api().GetSymbolicDimensions(tensor, names.data(), names.size()));
  const auto found = std::find(names.begin(), names.end(), kBatch);
  if (found == names.end()) return std::nullopt;
  return static_cast<size_t>(found - names.begin());
}

}  // namespace

struct Session::Runtime {
  const OrtApi& interface = api();  // before anything of ONNX Runtime, even an empty session, lives
  Ort::Session session{nullptr};
  std::vector<const char*> input_names, output_names;
};

Session::Session(const std::filesystem::path& model, const SessionSettings& settings)
    : file_(shown(model)), runtime_(std::make_unique<Runtime>()) {
  if (!std::filesystem::exists(model)) throw UsageError(file_ + ": there is no such file");
  if (!std::filesystem::is_regular_file(model)) throw UsageError(file_ + ": it is not a file");
  data_files_ = refuse_hostile(model);
  try {
    Ort::Env& env = environment();
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(settings.threads);
    options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);
    // Idle threads would otherwise spin and take the cores from everybody else.
    options.AddConfigEntry("session.intra_op.allow_spinning", "0");
    if (!settings.profile.empty()) options.EnableProfiling(settings.profile.c_str());
    if (!settings.provider.is_fallback) append(settings.provider, options);
    runtime_->session = Ort::Session(env, model.c_str(), options);
    const Ort::Session& session = runtime_->session;
    Ort::AllocatorWithDefaultOptions allocator;
    for (size_t i = 0; i < session.GetInputCount(); ++i) {
      const std::string name = session.GetInputNameAllocated(i, allocator).get();
      const Ort::TypeInfo info = session.GetInputTypeInfo(i);
      inputs_.push_back(signature(file_, name, info));
      batch_axes_.push_back(batch_axis(info));
    }
    for (size_t i = 0; i < session.GetOutputCount(); ++i) {
      const std::string name = session.GetOutputNameAllocated(i, allocator).get();
      outputs_.push_back(signature(file_, name, session.GetOutputTypeInfo(i)));
    }
  } catch (const Ort::Exception& error) {
    const std::string reason = one_line(error.what());
    if (settings.provider.is_fallback) throw UsageError(file_ + ": ONNX Runtime cannot load it: " + reason);
    throw NotVerifiable(file_ + ": ONNX Runtime opens no session on " + settings.provider.name + ": " + reason);
  }
  for (const Signature& input : inputs_) runtime_->input_names.push_back(input.name.c_str());
  for (const Signature& output : outputs_) runtime_->output_names.push_back(output.name.c_str());
}

Session::~Session() = default;

std::optional<std::string> Session::metadata(const std::string& key) const {
  Ort::AllocatorWithDefaultOptions allocator;
  const Ort::ModelMetadata all = runtime_->session.GetModelMetadata();
  const Ort::AllocatedStringPtr value = all.LookupCustomMetadataMapAllocated(key.c_str(), allocator);
  return value ? std::optional<std::string>(value.get()) : std::nullopt;
}

void Session::refuse_random() const {
  if (const std::optional<std::string> purpose = metadata("jumpout_export.random")) {
    throw UsageError(file_ + ": there is nothing to replay: its metadata says that it is " + one_line(*purpose));
  }
}

std::vector<Tensor> Session::run(const std::vector<Tensor>& inputs) const {
  std::vector<const Tensor*> all;
  for (const Tensor& input : inputs) all.push_back(&input);
  return run(all);
}

std::vector<Tensor> Session::run(const std::vector<const Tensor*>& inputs) const {
  try {
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    std::vector<Ort::Value> values;
    for (const Tensor* const input : inputs) {
      // ONNX Runtime takes the buffer as it is and only reads it.
      values.push_back(Ort::Value::CreateTensor(memory, const_cast<uint8_t*>(input->bytes.data()), input->bytes.size(),
                                                input->shape.data(), input->shape.size(),
                                                static_cast<ONNXTensorElementDataType>(input->dtype)));
    }
    const std::vector<Ort::Value> results =
        runtime_->session.Run(Ort::RunOptions{nullptr}, runtime_->input_names.data(), values.data(), values.size(),
                              runtime_->output_names.data(), runtime_->output_names.size());
    std::vector<Tensor> outputs;
    for (size_t i = 0; i < results.size(); ++i) {
      const auto info = results[i].GetTensorTypeAndShapeInfo();
      Tensor output{outputs_[i].name, static_cast<DType>(info.GetElementType()), info.GetShape(), {}};
      const auto* data = static_cast<const uint8_t*>(results[i].GetTensorRawData());
      output.bytes.assign(data, data + info.GetElementCount() * element_size(output.dtype));
      outputs.push_back(std::move(output));
    }
    return outputs;
  } catch (const Ort::Exception& error) {
    throw CheckFailed(file_ + ": ONNX Runtime cannot run it: " + one_line(error.what()));
  }
}

std::string Session::end_profile() {
  Ort::AllocatorWithDefaultOptions allocator;
  return runtime_->session.EndProfilingAllocated(allocator).get();
}

std::string library_version() { return OrtGetApiBase()->GetVersionString(); }

}  // namespace jumpout::replay
