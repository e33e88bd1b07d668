// Prints what the provider proof makes of a profile: replay-proof PROFILE.json cpu|cuda MODEL.onnx
#include <iostream>

#include "errors.h"
#include "placement.h"

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  try {
    const auto placement = jumpout::replay::place(jumpout::replay::executed_nodes(argv[1]),
                                                  jumpout::replay::parse_provider(argv[2]), argv[3]);
    for (const auto& [name, count] : placement.nodes) std::cout << count << " on " << name << "\n";
    for (const std::string& problem : placement.problems) std::cout << "problem: " << problem << "\n";
  } catch (const jumpout::Error& error) {
    std::cerr << error.what() << "\n";
    return jumpout::replay::exit_code(error);
  }
}
