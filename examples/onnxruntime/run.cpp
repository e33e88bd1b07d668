// Runs a proven file on zeros in plain ONNX Runtime, with the settings that it was verified with.
//   c++ -std=c++17 run.cpp -I <headers of ONNX Runtime> -L <its library> -lonnxruntime -o run && ./run model.onnx
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <iostream>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 2) return std::cerr << "usage: run MODEL.onnx\n", 2;
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "run");
  Ort::SessionOptions options;
  options.SetGraphOptimizationLevel(ORT_ENABLE_ALL);  // verified at this level and at ORT_DISABLE_ALL
  options.SetIntraOpNumThreads(1);                    // for one request; let the callers run in parallel
  options.AddConfigEntry("session.intra_op.allow_spinning", "0");
  Ort::Session session(env, argv[1], options);  // from here on any number of threads may call Run

  Ort::AllocatorWithDefaultOptions allocator;
  const Ort::AllocatedStringPtr input = session.GetInputNameAllocated(0, allocator);
  const Ort::AllocatedStringPtr output = session.GetOutputNameAllocated(0, allocator);
  const Ort::TypeInfo type = session.GetInputTypeInfo(0);
  std::vector<int64_t> shape = type.GetTensorTypeAndShapeInfo().GetShape();
  std::replace(shape.begin(), shape.end(), int64_t{-1}, int64_t{1});  // open axes, the batch among them
  int64_t size = 1;
  for (const int64_t axis : shape) size *= axis;

  std::vector<float> values(static_cast<size_t>(size));
  const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const Ort::Value given =
      Ort::Value::CreateTensor<float>(memory, values.data(), values.size(), shape.data(), shape.size());
  const char* inputs[] = {input.get()};
  const char* outputs[] = {output.get()};
  const std::vector<Ort::Value> answer = session.Run(Ort::RunOptions{}, inputs, &given, 1, outputs, 1);
  const float* begin = answer[0].GetTensorData<float>();
  const size_t count = answer[0].GetTensorTypeAndShapeInfo().GetElementCount();
  for (size_t i = 0; i < count; ++i) std::cout << begin[i] << '\n';
}
