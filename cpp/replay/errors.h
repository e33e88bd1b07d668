// What is thrown inside, by what is wrong, and what an exception becomes that leaves the library.
#pragma once

#include <algorithm>
#include <exception>
#include <new>
#include <string>
#include <string_view>

#include "jumpout/error.h"

namespace jumpout::replay {

// Exit code of a program that has passed; the others are those of Problem.
constexpr int kPassed = 0;

inline int exit_code(const Error& error) { return static_cast<int>(error.problem()); }

// The model cannot even be run on its own golden inputs, or is not what was proven.
struct CheckFailed : Error {
  explicit CheckFailed(const std::string& message, const std::string& check = "outputs")
      : Error(Problem::kFailed, message, check) {}
};

// An argument or a file cannot be used.
struct UsageError : Error {
  explicit UsageError(const std::string& message) : Error(Problem::kUnusable, message) {}
};

// This machine or this build lacks what the question needs.
struct NotVerifiable : Error {
  explicit NotVerifiable(const std::string& message) : Error(Problem::kNotVerifiable, message) {}
};

// A text that comes from a file or a library, as one line and without what could control a terminal. It is whole, but
// for one that no library writes and a file made to harm may hold.
inline std::string one_line(std::string_view text) {
  constexpr size_t kLongest = 10000;
  while (!text.empty() && text.back() == '\n') text.remove_suffix(1);
  std::string line(text.substr(0, kLongest));
  for (char& c : line) {
    if (c == '\n') c = ' ';
    if (static_cast<unsigned char>(c) < ' ' || c == '\x7f') c = '?';
  }
  if (text.size() > kLongest) line += "... and " + std::to_string(text.size() - kLongest) + " more characters";
  return line;
}

// Returns what the function returns; whatever it throws leaves as an Error, of no other type.
template <typename Function>
auto with_errors(const Function& function) -> decltype(function()) {
  try {
    return function();
  } catch (const Error& error) {
    throw Error(error);
  } catch (const std::bad_alloc&) {
    throw NotVerifiable("out of memory");
  } catch (const std::exception& error) {  // of the file system
    throw UsageError(one_line(error.what()));
  }
}

}  // namespace jumpout::replay
