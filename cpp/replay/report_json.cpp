// The fields are those of jumpout_export/report.py; docs/cpp.md says what stands in which.
#include <cmath>
#include <cstdio>
#include <optional>
#include <utility>

#include "platform.h"
#include "report.h"
#include "sha256.h"

namespace jumpout::replay {
namespace {

// SCHEMA_VERSION in report.py.
constexpr int kSchemaVersion = 2;

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
         ", \"required\": " + (check.required ? "true" : "false") + ", \"note\": " + json(check.note) + "}";
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

std::vector<Check> checks_of(const std::string& label, const Report& report) {
  std::vector<Check> checks = {manifest_check(label, report.without_manifest), nodes_check(label, report.placement)};
  if (report.must_repeat) {
    const bool same = report.differing.empty();
    const std::string good = std::to_string(report.repeats) + " runs have the bits of the first";
    checks.push_back(counted(label + "/repeatable", !same, same, same ? good : report.differing));
  }
  for (const OutputReport& output : report.outputs) {
    checks.push_back(output_check(label + "/" + output.place, output.name, output.kind, output.comparison));
  }
  return checks;
}

std::string to_json(const Setup& setup, const std::string& verdict, const std::string& reason,
                    const std::vector<Check>& checks, const std::vector<std::string>& notes) {
  std::vector<std::string> rows, lines;
  for (const Check& check : checks) rows.push_back(json(check));
  for (const std::string& note : notes) lines.push_back(json(note));
  const bool is_known = !setup.model.empty();
  return "{\"kind\": \"verify\", \"schema_version\": " + std::to_string(kSchemaVersion) +
         ", \"passed\": " + std::string(verdict == kPass ? "true" : "false") + ", \"providers\": {" +
         json(setup.provider.option) + ": {\"verdict\": " + json(verdict) + ", \"reason\": " + json(reason) +
         "}}, \"checks\": [" + joined(rows, ", ") +
         "], \"first_divergence\": null, \"path\": " + json(shown(setup.model)) +
         ", \"sha256\": " + json(is_known ? sha256_of(setup.model) : "") +
         ", \"data_files\": {}, \"data_sha256\": {}, \"against\": \"\", \"quantization\": null, \"notes\": [" +
         joined(lines, ", ") + "], \"environment\": {\"command\": " + json(setup.command) +
         ", \"onnxruntime\": " + json(library_version()) + ", \"machine\": " + json(machine()) +
         ", \"threads\": " + json(std::to_string(setup.threads)) + "}}\n";
}

Check failed_check(const Setup& setup, const Error& error) {
  return {setup.provider.option + "/all/" + error.check(), kFail, error.what(), std::nullopt, std::nullopt};
}

}  // namespace

Check manifest_check(const std::string& label, bool without_manifest) {
  const std::string name = label + "/manifest";
  if (without_manifest) return {name, kNotRun, "not looked at: --without-manifest", std::nullopt, std::nullopt, false};
  return {name, kPass, "model, weights and golden data are those that the manifest names", 0.0, 0.0};
}

Check output_check(const std::string& label, const std::string& output, const std::string& kind,
                   const Comparison& found) {
  const std::string name = label + "/worst error", verdict = found.passed ? kPass : kFail;
  std::string note = "output `" + output + "` " + kind;
  if (found.index.empty()) return {name, verdict, note + ": " + found.problem, std::nullopt, std::nullopt};
  // Seven digits are what a float32 has.
  note += ", index " + found.index + "; max abs " + format("%.7g", found.max_abs) + ", max rel " +
          format("%.7g", found.max_rel);
  return {name, verdict, note, found.error, found.limit};
}

std::string first_failure(const std::vector<Check>& checks) {
  for (const Check& check : checks) {
    if (check.verdict == kFail || (check.verdict == kNotRun && check.required)) return check.name + ": " + check.note;
  }
  return "";
}

std::string to_json(const Setup& setup, const std::vector<Check>& checks, const std::vector<std::string>& notes) {
  const std::string reason = first_failure(checks);
  return to_json(setup, reason.empty() ? kPass : kFail, reason, checks, notes);
}

std::string to_json(const Setup& setup, const Error& error) {
  const std::string reason = error.what();
  if (error.problem() == Problem::kFailed) return to_json(setup, {failed_check(setup, error)}, {});
  return to_json(setup, kNotRun, reason, {{setup.provider.option, kNotRun, reason, std::nullopt, std::nullopt}}, {});
}

Verification verification_of(const Options& options, const Report& report) {
  // The label of a session as in Python: the provider, and that all of ONNX Runtime's optimizations are on.
  const std::vector<Check> checks = checks_of(options.provider.option + "/all", report);
  const std::vector<std::string> notes = {"latency: " + format("%.4g", report.latency_ms) + " ms, median of " +
                                          std::to_string(report.repeats) + " runs"};
  return {report.passed(), checks, to_text(report), to_json(options, checks, notes)};
}

Verification verification_of(const Setup& setup, const CheckFailed& error) {
  return {false, {failed_check(setup, error)}, std::string(error.what()) + "\n", to_json(setup, error)};
}

}  // namespace jumpout::replay
