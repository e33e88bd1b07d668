// Classifies one image with an exported network: classify MODEL.onnx IMAGE
// IMAGE is a PGM (grey) or PPM (colour) of the size that the network takes; its values become 0 to 1.
#include <jumpout/model.h>

#include <algorithm>
#include <exception>
#include <iostream>

#include "image.h"

int main(int argc, char** argv) try {
  if (argc != 3) throw std::runtime_error("usage: classify MODEL.onnx IMAGE.pgm");
  const Image image = read_image(argv[2]);

  const jumpout::Model model(argv[1]);  // load once, run from any number of threads
  if (const jumpout::Verification proof = model.verify(); !proof) throw std::runtime_error(proof.text);

  const std::vector<int64_t> shape = {1, image.channels, image.height, image.width};  // the first is the batch
  const std::string input = model.inputs().at(0).name;
  const std::vector<jumpout::Tensor> answer = model.run({jumpout::Tensor::of(input, shape, image.values)});
  const std::vector<float> scores = answer.at(0).values<float>();
  std::cout << "class " << std::max_element(scores.begin(), scores.end()) - scores.begin() << " of " << scores.size()
            << "\n";
} catch (const std::exception& error) {
  std::cerr << "classify: " << error.what() << "\n";
  return 1;
}
