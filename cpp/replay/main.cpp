// jumpout-replay: repeats the proof of an exported model without Python.
#include <iostream>

#include "command.h"
#include "platform.h"

int main(int argc, char** argv) {
  return jumpout::replay::run_command(jumpout::replay::arguments(argc, argv), std::cout, std::cerr);
}
