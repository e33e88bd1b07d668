// The command as a function, for the program and for tests that call it many times.
#pragma once

#include <iosfwd>
#include <string>
#include <vector>

namespace jumpout::replay {

// Returns the exit code. The result goes to `out`; where there is none, one line to `err`.
int run_command(const std::vector<std::string>& words, std::ostream& out, std::ostream& err);

}  // namespace jumpout::replay
