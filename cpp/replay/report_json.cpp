// The fields are those of jumpout_export/report.py; docs/cpp.md says what stands in which.
#include <sys/utsname.h>

#include <cmath>
#include <cstdio>
#include <optional>
#include <utility>

#include "report.h"
#include "sha256.h"

namespace jumpout::replay {
namespace {

// SCHEMA_VERSION in report.py.
constexpr int kSchemaVersion = 2;
constexpr char kPass[] = "pass", kFail[] = "fail", kNotRun[] = "not_run";

std::string format(const char* pattern, double value) {
  char text[64];
  std::snprintf(text, sizeof(text), pattern, value);
  return text;
}

// JSON has no infinity; the schema has it as a string.
std::string json(std::optional<double> value) {
  if (!value) return "null";
  return std::isfinite(*value) ? format("%.17g", *value) : *value > 0 ? "\"Infinity\"" : "\"-Infinity\"";
}

// Length of the UTF-8 sequence at the start of the text, 0 if there is none: a name in a file may hold any bytes.
size_t utf8_length(std::string_view text) {
  const auto byte = [text](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned first = byte(0);
  const size_t length = first < 0x80   ? 1
                        : first < 0xc2 ? 0
                        : first < 0xe0 ? 2
                        : first < 0xf0 ? 3
                        : first < 0xf5 ? 4
                                       : 0;
  if (length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i) {
    if (byte(i) >> 6 != 2) return 0;
  }
  const bool overlong = (first == 0xe0 && byte(1) < 0xa0) || (first == 0xf0 && byte(1) < 0x90);
  const bool beyond = (first == 0xed && byte(1) > 0x9f) || (first == 0xf4 && byte(1) > 0x8f);
  return overlong || beyond ? 0 : length;
}

std::string json(std::string_view value) {
  std::string text = "\"";
  while (!value.empty()) {
    const size_t length = utf8_length(value);
    const auto first = static_cast<unsigned char>(value[0]);
    if (length == 0) {
      text += "\\ufffd";
    } else if (first < ' ' || first == '\x7f') {
      char escaped[8];
      std::snprintf(escaped, sizeof(escaped), "\\u%04x", first);
      text += escaped;
    } else {
      if (first == '"' || first == '\\') text += '\\';
      text += value.substr(0, length);
    }
    value.remove_prefix(length ? length : 1);
  }
  return text + '"';
}

std::string json(const Check& check) {
  return "{\"name\": " + json(check.name) + ", \"measured\": " + json(check.measured) +
         ", \"limit\": " + json(check.limit) + ", \"verdict\": " + json(check.verdict) +
         ", \"required\": true, \"note\": " + json(check.note) + "}";
}

std::string joined(const std::vector<std::string>& parts, const std::string& separator) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : separator) + part;
  return text;
}

// Of something that is allowed nowhere.
Check counted(const std::string& name, size_t found, bool passed, const std::string& note) {
  return {name, passed ? kPass : kFail, note, static_cast<double>(found), 0.0};
}

Check nodes_check(const std::string& label, const Placement& placement) {
  std::vector<std::string> places;
  for (const auto& [provider, count] : placement.nodes) places.push_back(std::to_string(count) + " on " + provider);
  std::string note = "nodes that ran: " + joined(places, ", ");
  if (places.empty()) note = "a session on the CPU alone runs every node there";
  if (placement.shapes) note += ", of which " + std::to_string(placement.shapes) + " read shapes only";
  if (!placement.problems.empty()) note = joined(placement.problems, "; ");
  return counted(label + "/nodes", placement.elsewhere, placement.problems.empty(), note);
}

// Seven digits are what a float32 has.
Check output_check(const std::string& label, const OutputReport& output) {
  const Comparison& c = output.comparison;
  const std::string name = label + "/" + output.place + "/worst error", verdict = c.passed ? kPass : kFail;
  std::string note = "output `" + output.name + "` " + output.kind;
  if (c.index.empty()) return {name, verdict, note + ": " + c.problem, std::nullopt, std::nullopt};
  note += ", index " + c.index + "; max abs " + format("%.7g", c.max_abs) + ", max rel " + format("%.7g", c.max_rel);
  return {name, verdict, note, c.error, c.limit};
}

std::vector<Check> checks_of(const std::string& label, const Report& report) {
  std::vector<Check> checks = {nodes_check(label, report.placement)};
  if (report.must_repeat) {
    const bool same = report.differing.empty();
    const std::string good = std::to_string(report.repeats) + " runs have the bits of the first";
    checks.push_back(counted(label + "/repeatable", !same, same, same ? good : report.differing));
  }
  for (const OutputReport& output : report.outputs) checks.push_back(output_check(label, output));
  return checks;
}

std::string to_json(const Options& options, const std::string& verdict, const std::string& reason,
                    const std::vector<Check>& checks, const std::vector<std::string>& notes) {
  std::vector<std::string> rows, lines;
  for (const Check& check : checks) rows.push_back(json(check));
  for (const std::string& note : notes) lines.push_back(json(note));
  utsname machine{};
  uname(&machine);
  return "{\"kind\": \"verify\", \"schema_version\": " + std::to_string(kSchemaVersion) +
         ", \"passed\": " + std::string(verdict == kPass ? "true" : "false") + ", \"providers\": {" +
         json(options.provider.option) + ": {\"verdict\": " + json(verdict) + ", \"reason\": " + json(reason) +
         "}}, \"checks\": [" + joined(rows, ", ") + "], \"first_divergence\": null, \"path\": " + json(options.model) +
         ", \"sha256\": " + json(sha256_of(options.model)) + ", \"data_files\": {}, \"notes\": [" +
         joined(lines, ", ") + "], \"environment\": {\"command\": " + json(options.command) +
         ", \"onnxruntime\": " + json(library_version()) +
         ", \"machine\": " + json(std::string(machine.machine) + ", " + machine.sysname) +
         ", \"threads\": " + json(std::to_string(options.threads)) + "}}\n";
}

Check failed_check(const Options& options, const Error& error) {
  return {options.provider.option + "/all/outputs", kFail, error.what(), std::nullopt, std::nullopt};
}

}  // namespace

Verification verification_of(const Options& options, const std::function<Report()>& proof) {
  try {
    const Report report = proof();
    // The label of a session as in Python: the provider, and that all of ONNX Runtime's optimizations are on.
    const std::vector<Check> checks = checks_of(options.provider.option + "/all", report);
    std::string reason;
    for (const Check& check : checks) {
      if (reason.empty() && check.verdict == kFail) reason = check.name + ": " + check.note;
    }
    const std::vector<std::string> notes = {"latency: " + format("%.4g", report.latency_ms) + " ms, median of " +
                                            std::to_string(report.repeats) + " runs"};
    const std::string verdict = report.passed() ? kPass : kFail;
    return {report.passed(), checks, to_text(report), to_json(options, verdict, reason, checks, notes)};
  } catch (const CheckFailed& error) {
    return {false, {failed_check(options, error)}, std::string(error.what()) + "\n", to_json(options, error)};
  }
}

std::string to_json(const Options& options, const Error& error) {
  const std::string provider = options.provider.option, reason = error.what();
  if (error.problem() == Problem::kNotVerifiable) {
    return to_json(options, kNotRun, reason, {{provider, kNotRun, reason, std::nullopt, std::nullopt}}, {});
  }
  const Check check = failed_check(options, error);
  return to_json(options, kFail, check.name + ": " + reason, {check}, {});
}

}  // namespace jumpout::replay
