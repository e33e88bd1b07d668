// What the proof of a model found.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace jumpout {

// One thing that was checked, as in docs/report.schema.json.
struct Check {
  std::string name;     // such as `cpu/all/test_data_set_0/output_0/worst error`
  std::string verdict;  // `pass`, `fail` or `not_run`
  std::string note;     // one sentence for a person
  std::optional<double> measured, limit;
  bool required = true;  // whether there is no pass without it
};

struct Verification {
  bool passed = false;
  std::vector<Check> checks;
  std::string text;  // for a person, one line for each output, the last the verdict
  std::string json;  // a `VerifyReport` of docs/report.schema.json, one line

  explicit operator bool() const { return passed; }
};

}  // namespace jumpout
