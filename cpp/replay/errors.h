// What ends the program without a verdict. Every message is one line and names the file or output concerned.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <string_view>

namespace replay {

enum ExitCode { kPassed = 0, kFailed = 1, kWrongUsage = 2, kNotVerifiable = 3 };

class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

// The model cannot even be run on its own golden inputs.
struct CheckFailed : Error {
  explicit CheckFailed(const std::string& message) : Error(kFailed, message) {}
};

// An argument or a file cannot be used.
struct UsageError : Error {
  explicit UsageError(const std::string& message) : Error(kWrongUsage, message) {}
};

// This machine or this build lacks what the question needs.
struct NotVerifiable : Error {
  explicit NotVerifiable(const std::string& message) : Error(kNotVerifiable, message) {}
};

// First line of a text that comes from a file or a library, cut, and without what could control a terminal.
inline std::string one_line(std::string_view text) {
  constexpr size_t kLongest = 300;
  std::string line(text.substr(0, std::min(text.find('\n'), kLongest)));
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < ' ' || c == '\x7f') c = '?';
  }
  return line;
}

}  // namespace replay
