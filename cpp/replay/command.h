// The commands as functions, for the programs and for tests that call them many times.
#pragma once

#include <iosfwd>
#include <string>
#include <vector>

namespace jumpout::replay {

// Return the exit code. The result goes to `out`; where there is none, one line to `err`.
int run_command(const std::vector<std::string>& words, std::ostream& out, std::ostream& err);
int run_load_command(const std::vector<std::string>& words, std::ostream& out, std::ostream& err);

}  // namespace jumpout::replay
