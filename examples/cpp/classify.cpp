// Classifies one image with an exported network: classify MODEL.onnx IMAGE
// IMAGE is a binary PGM (grey) or PPM (colour) of the size that the network takes; its values become 0 to 1.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <vector>

int main(int argc, char** argv) try {
  if (argc != 3) throw std::runtime_error("usage: classify MODEL.onnx IMAGE.pgm");
  std::ifstream file(argv[2], std::ios::binary);
  std::string format;
  int64_t width = 0, height = 0, largest = 0;
  file >> format >> width >> height >> largest;
  const int64_t channels = format == "P6" ? 3 : 1;
  const bool sane = std::min({width, height, largest}) > 0 && std::max(width, height) <= 1 << 14 && largest <= 255;
  if (!file || !sane || (format != "P5" && format != "P6")) throw std::runtime_error("not a binary PGM or PPM image");
  std::vector<char> bytes(channels * width * height);
  file.get();  // one white space ends the header
  if (!file.read(bytes.data(), bytes.size())) throw std::runtime_error("the image is truncated");
  std::vector<float> pixels(bytes.size());  // channel by channel; in the file it is pixel by pixel
  for (size_t i = 0; i < bytes.size(); ++i) {
    pixels[i % channels * width * height + i / channels] = static_cast<unsigned char>(bytes[i]) / float(largest);
  }

  Ort::Env env;  // one for the process
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(1);              // threads for one request
  Ort::Session session(env, argv[1], options);  // load once, use from any number of threads
  Ort::AllocatorWithDefaultOptions allocator;
  const auto input = session.GetInputNameAllocated(0, allocator), output = session.GetOutputNameAllocated(0, allocator);
  const char *inputs[] = {input.get()}, *outputs[] = {output.get()};

  const std::vector<int64_t> shape = {1, channels, height, width};  // the first is the batch
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto image = Ort::Value::CreateTensor(memory, pixels.data(), pixels.size(), shape.data(), shape.size());
  const auto answer = session.Run(Ort::RunOptions{nullptr}, inputs, &image, 1, outputs, 1);
  const float* scores = answer[0].GetTensorData<float>();
  const size_t classes = answer[0].GetTensorTypeAndShapeInfo().GetElementCount();
  std::cout << "class " << std::max_element(scores, scores + classes) - scores << " of " << classes << "\n";
} catch (const std::exception& error) {
  std::cerr << "classify: " << error.what() << "\n";
  return 1;
}
