// The proof: the model runs on its golden inputs, where it was asked to, and its outputs are within their tolerance.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "compare.h"
#include "options.h"

namespace replay {

struct OutputReport {
  std::string file;  // of the golden values
  std::string name;
  std::string kind;  // such as `float32[8,10]`
  Comparison comparison;
};

struct Report {
  std::string model, library, provider;
  int threads = 1, repeats = 1;
  std::map<std::string, int> nodes;  // executed, by execution provider
  std::vector<OutputReport> outputs;
  double latency_ms = 0;              // of one golden data set, the median of all runs
  std::vector<std::string> problems;  // beyond those of the outputs
  bool passed() const;
};

// Throws Error where there is no verdict.
Report replay(const Options& options);

}  // namespace replay
