// Prints what the provider proof makes of a profile: replay-proof PROFILE.json cpu|cuda
#include <iostream>

#include "options.h"
#include "providers.h"

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const auto placement = replay::place(replay::executed_nodes(argv[1]), replay::parse_provider(argv[2]));
  for (const auto& [name, count] : placement.nodes) std::cout << count << " on " << name << "\n";
  for (const std::string& problem : placement.problems) std::cout << "problem: " << problem << "\n";
}
