#include "report.h"

#include <cstdio>
#include <sstream>

#include "errors.h"

namespace jumpout::replay {
namespace {

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.3g", value);
  return text;
}

std::string plural(int count, const std::string& what) {
  return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
}

int count_failed(const Report& report) {
  int failed = 0;
  for (const OutputReport& output : report.outputs) failed += !output.comparison.passed;
  return failed;
}

std::string line(const OutputReport& output) {
  const Comparison& c = output.comparison;
  const std::string start = output.file + ": output `" + one_line(output.name) + "` " + output.kind;
  if (!c.passed && c.limit == 0 && c.max_abs == 0) return start + ", FAIL: " + c.problem;  // nothing was measured
  return start + ", max abs " + number(c.max_abs) + ", max rel " + number(c.max_rel) + ", limit " + number(c.limit) +
         " at " + c.index + ", " + (c.passed ? "pass, " + number(c.share) + " of it" : "FAIL: " + c.problem);
}

}  // namespace

std::string to_text(const Report& report) {
  std::ostringstream text;
  text << report.model << ": ONNX Runtime " << report.library << " on " << report.provider << ", "
       << plural(report.threads, "thread");
  for (const auto& [provider, count] : report.placement.nodes)
    text << ", " << plural(count, "node") << " on " << provider;
  if (report.placement.nodes.empty()) text << ", all nodes there";
  text << "\n";
  if (report.without_manifest) text << "manifest: not looked at, --without-manifest\n";
  for (const OutputReport& output : report.outputs) text << line(output) << "\n";
  const std::vector<std::string> problems = report.problems();
  for (const std::string& problem : problems) text << "FAIL: " << problem << "\n";
  text << "latency: " << number(report.latency_ms) << " ms, median of " << report.repeats << " runs\n";
  const int count = static_cast<int>(report.outputs.size());
  if (report.passed()) {
    text << "PASS: " << plural(count, "output") << " within tolerance of the golden data\n";
  } else {
    text << "FAIL: " << count_failed(report) << " of " << plural(count, "output") << " beyond tolerance"
         << (problems.empty() ? "" : ", " + plural(static_cast<int>(problems.size()), "other problem")) << "\n";
  }
  return text.str();
}

}  // namespace jumpout::replay
