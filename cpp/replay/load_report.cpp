#include <cstdio>
#include <sstream>

#include "load.h"
#include "platform.h"
#include "report.h"

namespace jumpout::replay {
namespace {

std::string fixed(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof(text), "%.*f", digits, value);
  return text;
}

std::string plural(int64_t count, const std::string& what) {
  return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
}

Check none_of(const std::string& name, int64_t found, const std::string& note) {
  return {name, found ? kFail : kPass, note, static_cast<double>(found), 0.0};
}

// To know, not to pass or fail.
Check measured(const std::string& name, double value, const std::string& note) {
  return {name, kPass, note, value, std::nullopt};
}

Check memory_check(const std::string& name, const LoadReport& report) {
  if (!report.memory_before || !report.memory_after) {
    return {name,         kNotRun,       "what a process holds in memory cannot be told on this system",
            std::nullopt, kMemoryGrowth, false};
  }
  const double growth = *report.memory_after - *report.memory_before;
  const std::string note = "MiB that resident memory has grown by: " + fixed(*report.memory_before, 2) +
                           " after the warm-up, " + fixed(*report.memory_after, 2) + " at the end";
  return {name, growth <= kMemoryGrowth ? kPass : kFail, note, growth, kMemoryGrowth};
}

std::vector<Check> checks_of(const std::string& label, const LoadReport& report) {
  const int64_t answers = report.warmup + report.requests;
  std::vector<Check> checks = {manifest_check(label, report.without_manifest),
                               none_of(label + "/answers", report.wrong,
                                       "answers beyond tolerance of the golden outputs, of " + std::to_string(answers) +
                                           " from " + plural(report.clients, "client"))};
  if (report.must_repeat) {
    checks.push_back(none_of(label + "/repeatable", report.differing,
                             "answers with other bits than the same request had alone, of " + std::to_string(answers)));
  }
  for (size_t i = 0; i < report.outputs.size(); ++i) {
    const LoadOutput& output = report.outputs[i];
    checks.push_back(output_check(label + "/output_" + std::to_string(i), output.name, output.kind, output.worst));
  }
  checks.push_back(memory_check(label + "/memory", report));
  const double seconds = report.seconds;
  checks.push_back(
      {label + "/requests", report.requests > 0 ? kPass : kFail,
       "requests sent in " + fixed(seconds, 3) + " s, after " + std::to_string(report.warmup) + " to warm up",
       static_cast<double>(report.requests), std::nullopt});
  checks.push_back(measured(label + "/samples", static_cast<double>(report.samples), "samples in these requests"));
  checks.push_back(measured(label + "/requests per second", static_cast<double>(report.requests) / seconds, ""));
  checks.push_back(measured(label + "/samples per second", static_cast<double>(report.samples) / seconds, ""));
  for (const int percent : {50, 95, 99}) {
    checks.push_back(measured(label + "/latency p" + std::to_string(percent),
                              report.latencies.percentile(percent / 100.0),
                              "ms that " + std::to_string(percent) + "% of the requests did not exceed, to 0.4%"));
  }
  return checks;
}

std::string to_text(const LoadOptions& options, const LoadReport& report, const std::vector<Check>& checks) {
  std::ostringstream text;
  const double seconds = report.seconds;
  text << shown(options.model) << ": ONNX Runtime " << report.library << " on " << options.provider.option << ", "
       << plural(report.clients, "client") << "\n"
       << "sent: " << plural(report.requests, "request") << ", " << plural(report.samples, "sample") << " in "
       << fixed(seconds, 3) << " s, after " << plural(report.warmup, "request") << " to warm up\n"
       << "answers: " << report.wrong << " beyond tolerance of the golden outputs, " << report.differing
       << " with other bits than alone\n"
       << "per second: " << fixed(static_cast<double>(report.requests) / seconds, 1) << " requests, "
       << fixed(static_cast<double>(report.samples) / seconds, 1) << " samples\n"
       << (report.without_manifest ? "manifest: not looked at, --without-manifest\n" : "") << "latency:";
  for (const int percent : {50, 95, 99}) {
    text << (percent == 50 ? " " : ", ") << fixed(report.latencies.percentile(percent / 100.0), 3) << " ms p"
         << percent;
  }
  text << "\n";
  if (report.memory_before && report.memory_after) {
    text << "memory: " << fixed(*report.memory_before, 2) << " MiB, " << fixed(*report.memory_after, 2)
         << " MiB at the end\n";
  }
  const std::string problem = first_failure(checks);
  text << (problem.empty() ? "PASS: every answer within tolerance of the golden outputs" : "FAIL: " + problem) << "\n";
  return text.str();
}

}  // namespace

Verification verification_of(const LoadOptions& options, const LoadReport& report) {
  const std::vector<Check> checks = checks_of(options.provider.option + "/load", report);
  return {first_failure(checks).empty(), checks, to_text(options, report, checks), to_json(options, checks, {})};
}

}  // namespace jumpout::replay
