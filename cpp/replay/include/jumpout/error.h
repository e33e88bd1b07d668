// What this library throws, and all that it throws.
#pragma once

#include <stdexcept>
#include <string>

namespace jumpout {

// The numbers are the exit codes of the programs.
enum class Problem {
  kFailed = 1,         // a check failed: the file is not what was proven, or cannot run its own data
  kUnusable = 2,       // an argument or a file cannot be used
  kNotVerifiable = 3,  // this machine or this build lacks what the question needs
};

// Every message is one line and names the file, the tensor or the argument concerned.
class Error : public std::runtime_error {
 public:
  Error(Problem problem, const std::string& message, const std::string& check = "")
      : std::runtime_error(message), problem_(problem), check_(check) {}
  Problem problem() const noexcept { return problem_; }

  // The check that failed: `outputs`, or `manifest`; empty for another problem.
  const std::string& check() const noexcept { return check_; }

 private:
  Problem problem_;
  std::string check_;
};

}  // namespace jumpout
