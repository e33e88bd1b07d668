// The words of a command line.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace jumpout::replay {

// A command's own options, read by name.
class Arguments {
 public:
  // `values` are options that take a value, as the next word or behind `=`, `flags` those that do not; exactly one
  // other argument is the model. Throws UsageError for anything else.
  Arguments(const std::vector<std::string>& words, const std::vector<std::string>& values,
            const std::vector<std::string>& flags);
  const std::string& model() const { return model_; }
  bool has(const std::string& name) const;
  std::string text(const std::string& name, const std::string& otherwise) const;
  int number(const std::string& name, int otherwise, int most) const;
  // A number above 0, not necessarily whole.
  double seconds(const std::string& name, double otherwise, double most) const;
  // Numbers with commas between them.
  std::vector<int> numbers(const std::string& name, const std::vector<int>& otherwise, int most) const;

 private:
  std::string model_;
  std::vector<std::pair<std::string, std::string>> given_;
};

// The command as a shell takes it.
std::string in_shell(const std::string& program, const std::vector<std::string>& words);

}  // namespace jumpout::replay
