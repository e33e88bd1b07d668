// jumpout-load: many clients on one session of an exported model.
#include <iostream>

#include "command.h"
#include "platform.h"

int main(int argc, char** argv) {
  return jumpout::replay::run_load_command(jumpout::replay::arguments(argc, argv), std::cout, std::cerr);
}
