// The proof of a model: it runs on its golden inputs, where it was asked to, and its outputs are within their
// tolerance.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "compare.h"
#include "placement.h"
#include "provider.h"
#include "session.h"

namespace jumpout::replay {

// What is proven, and where.
struct Setup {
  std::filesystem::path model, data;  // no data: the folder of the model
  std::string command;                // as a shell takes it
  Provider provider = fallback();
  int threads = 1;                // that one request is spread over
  bool without_manifest = false;  // whether a file that no manifest describes is good enough
};

struct Options : Setup {
  explicit Options(const Setup& setup = {}) : Setup(setup) {}

  std::filesystem::path dump;  // none if empty
  int repeat = 20;
};

struct OutputReport {
  std::string file;   // of the golden values
  std::string place;  // of that file, such as `test_data_set_0/output_0`
  std::string name;
  std::string kind;  // such as `float32[8,10]`
  Comparison comparison;
};

struct Report {
  std::string model, library, provider;
  int threads = 1, repeats = 1;
  Placement placement;
  std::vector<OutputReport> outputs;
  double latency_ms = 0;                      // of one golden data set, the median of all runs
  bool without_manifest = false;              // whether nobody looked whether these are the files that were proven
  bool must_repeat = true;                    // all runs must have the same bits
  std::string differing;                      // where they do not; empty if they do
  std::vector<std::string> problems() const;  // beyond those of the outputs
  bool passed() const;
};

// The tolerance of each output, as the metadata say. Throws UsageError.
std::vector<Tolerance> tolerances_of(const Session& session, const Setup& setup);

// Proves the model in a session of its own, whose profile says where the nodes ran. Throws Error where there is no
// verdict.
Report replay(const Options& options);

// Proves the model in a session that serves. Where that may run nodes on another provider, a session of its own says
// which. Throws Error where there is no verdict.
Report prove(const Session& session, const Options& options);

}  // namespace jumpout::replay
