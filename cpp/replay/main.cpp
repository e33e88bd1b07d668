// jumpout-replay: repeats the proof of an exported model without Python.
#include <iostream>

#include "command.h"

int main(int argc, char** argv) {
  return jumpout::replay::run_command(std::vector<std::string>(argv + 1, argv + argc), std::cout, std::cerr);
}
