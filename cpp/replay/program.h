// What the programs have in common: help, version, options, JSON, and an exit code whatever happens.
#pragma once

#include <functional>
#include <iosfwd>
#include <string>
#include <vector>

#include "arguments.h"
#include "jumpout/verification.h"
#include "replay.h"

namespace jumpout::replay {

struct Program {
  std::string name, usage;
  std::vector<std::string> values, flags;  // options with and without a value, beside those that all programs have
  std::function<Verification(const Arguments&, const Setup&)> run;
};

// Returns the exit code. The result goes to `out`, with --json as a report whatever it is; an error as one line to
// `err`.
int run_program(const Program& program, const std::vector<std::string>& words, std::ostream& out, std::ostream& err);

// All providers but the first, as a program's help lists them.
std::string other_providers();

}  // namespace jumpout::replay
