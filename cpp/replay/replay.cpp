#include "replay.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <functional>

#include "errors.h"
#include "golden.h"
#include "platform.h"
#include "proven.h"
#include "tolerance.h"
#include "wire.h"

namespace jumpout::replay {
namespace {

namespace fs = std::filesystem;

std::vector<OutputReport> compare_all(const GoldenSet& set, const std::vector<Tensor>& outputs,
                                      const std::vector<Tolerance>& tolerances) {
  std::vector<OutputReport> reports;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const std::string number = "output_" + std::to_string(i), file = shown(set.folder / (number + ".pb"));
    try {
      reports.push_back({file, set.name + "/" + number, outputs[i].name, describe(outputs[i].dtype, outputs[i].shape),
                         compare(set.outputs[i], outputs[i], tolerances[i])});
    } catch (const FormatError& error) {
      throw UsageError(file + ": " + one_line(error.what()));
    }
  }
  return reports;
}

double milliseconds(const std::chrono::steady_clock::duration& time) {
  return std::chrono::duration<double, std::milli>(time).count();
}

bool same_bits(const std::vector<Tensor>& one, const std::vector<Tensor>& two) {
  return std::equal(one.begin(), one.end(), two.begin(), two.end(),
                    [](const Tensor& a, const Tensor& b) { return a.shape == b.shape && a.bytes == b.bytes; });
}

void dump(const fs::path& folder, const std::string& set, const std::vector<Tensor>& outputs) {
  fs::create_directories(folder / set);
  for (size_t i = 0; i < outputs.size(); ++i) {
    const fs::path file = folder / set / ("output_" + std::to_string(i) + ".raw");
    std::ofstream stream(file, std::ios::binary);
    const auto& bytes = outputs[i].bytes;
    if (!stream.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()))) {
      throw UsageError(shown(file) + ": cannot be written");
    }
  }
}

// Where nobody says where the nodes ran. A session on the provider that takes what no other does has no other.
Placement without_profile(const Provider& provider) {
  if (provider.is_fallback) return {};
  throw NotVerifiable(
      "where the nodes run cannot be proven: no profile can be written to the temporary folder; let TMPDIR name one "
      "that "
      "can be written to, such as /dev/shm");
}

// `place_nodes` says, for inputs that the session has run, where the nodes did.
Report prove(const Session& session, const Options& options,
             const std::function<Placement(const std::vector<Tensor>&)>& place_nodes) {
  Report report;
  report.model = shown(options.model);
  report.library = library_version();
  report.provider = options.provider.option;
  report.without_manifest = options.without_manifest;
  report.must_repeat = options.provider.must_repeat;
  report.threads = options.threads;
  report.repeats = options.repeat;
  session.refuse_random();
  const std::vector<Tolerance> tolerances = tolerances_of(session, options);
  const std::vector<GoldenSet> sets = golden_of(session, options);

  std::vector<double> times;
  for (const GoldenSet& set : sets) {
    const std::vector<Tensor> outputs = session.run(set.inputs);
    if (report.outputs.empty()) report.placement = place_nodes(set.inputs);
    for (OutputReport& output : compare_all(set, outputs, tolerances)) report.outputs.push_back(std::move(output));
    if (!options.dump.empty()) dump(options.dump, set.name, outputs);
    for (int run = 0; run < options.repeat; ++run) {
      const auto start = std::chrono::steady_clock::now();
      const std::vector<Tensor> again = session.run(set.inputs);
      times.push_back(milliseconds(std::chrono::steady_clock::now() - start));
      if (report.must_repeat && report.differing.empty() && !same_bits(outputs, again)) {
        report.differing = "two runs on " + shown(set.folder) + " differ";
      }
    }
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  report.latency_ms = times[times.size() / 2];
  return report;
}

}  // namespace

std::vector<Tolerance> tolerances_of(const Session& session, const Setup& setup) {
  const std::string model = shown(setup.model);
  std::vector<Tolerance> tolerances;
  for (const Signature& output : session.outputs()) {
    const std::optional<std::string> line = session.metadata(kToleranceKey + output.name);
    if (!line) {
      throw UsageError(model + ": its metadata has no tolerance for output `" + one_line(output.name) +
                       "`; export it anew with jumpout-export and --golden");
    }
    try {
      tolerances.push_back(parse_tolerance(*line));
    } catch (const FormatError& error) {
      throw UsageError(model + ": the tolerance of output `" + one_line(output.name) +
                       "` cannot be read: " + one_line(error.what()));
    }
  }
  return tolerances;
}

std::vector<std::string> Report::problems() const {
  if (placement.problems.empty() && !differing.empty()) return {differing};
  return placement.problems;
}

bool Report::passed() const {
  return placement.problems.empty() && differing.empty() && !outputs.empty() &&
         std::all_of(outputs.begin(), outputs.end(), [](const OutputReport& o) { return o.comparison.passed; });
}

Report replay(const Options& options) {
  const ProfileFolder profile;
  Session session(options.model, {options.provider, options.threads, profile.prefix()});
  check_proven(session, options);
  return prove(session, options, [&](const std::vector<Tensor>&) {
    if (profile.prefix().empty()) return without_profile(options.provider);
    return place(executed_nodes(session.end_profile()), options.provider, options.model);
  });
}

Report prove(const Session& session, const Options& options) {
  return prove(session, options, [&](const std::vector<Tensor>& inputs) {
    const ProfileFolder profile;
    if (options.provider.is_fallback || profile.prefix().empty()) return without_profile(options.provider);
    Session another(options.model, {options.provider, options.threads, profile.prefix()});
    another.run(inputs);
    return place(executed_nodes(another.end_profile()), options.provider, options.model);
  });
}

}  // namespace jumpout::replay
