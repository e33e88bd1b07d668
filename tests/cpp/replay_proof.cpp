// Prints what the provider proof makes of a profile: replay-proof PROFILE.json cpu|cuda MODEL.onnx
#include <iostream>

#include "errors.h"
#include "options.h"
#include "placement.h"

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  try {
    const auto placement = replay::place(replay::executed_nodes(argv[1]), replay::parse_provider(argv[2]), argv[3]);
    for (const auto& [name, count] : placement.nodes) std::cout << count << " on " << name << "\n";
    for (const std::string& problem : placement.problems) std::cout << "problem: " << problem << "\n";
  } catch (const replay::Error& error) {
    std::cerr << error.what() << "\n";
    return error.code();
  }
}
