// The command line.
#pragma once

#include <string>
#include <vector>

#include "replay.h"

namespace jumpout::replay {

// A command's own options, read by name.
class Arguments {
 public:
  // `values` are options that take a value, `flags` those that do not; exactly one other argument is the model. Throws
  // UsageError for anything else.
  Arguments(const std::vector<std::string>& words, const std::vector<std::string>& values,
            const std::vector<std::string>& flags);
  const std::string& model() const { return model_; }
  bool has(const std::string& flag) const;
  std::string text(const std::string& name, const std::string& otherwise) const;
  int number(const std::string& name, int otherwise, int most) const;

 private:
  std::string model_;
  std::vector<std::pair<std::string, std::string>> given_;
};

Options parse_options(const std::vector<std::string>& words);

std::string usage();

}  // namespace jumpout::replay
