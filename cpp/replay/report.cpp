#include "report.h"

#include <cmath>
#include <cstdio>
#include <sstream>

#include "errors.h"

namespace replay {
namespace {

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.3g", value);
  return text;
}

// JSON has no infinity.
std::string json_number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.17g", value);
  return std::isfinite(value) ? text : "null";
}

std::string quoted(const std::string& value) {
  std::string text = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') text += '\\';
    if (static_cast<unsigned char>(c) >= ' ') {
      text += c;
    } else {
      char escaped[8];
      std::snprintf(escaped, sizeof(escaped), "\\u%04x", c);
      text += escaped;
    }
  }
  return text + '"';
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
  for (const auto& [provider, count] : report.nodes) text << ", " << plural(count, "node") << " on " << provider;
  text << "\n";
  for (const OutputReport& output : report.outputs) text << line(output) << "\n";
  for (const std::string& problem : report.problems) text << "FAIL: " << problem << "\n";
  text << "latency: " << number(report.latency_ms) << " ms, median of " << report.repeats << " runs\n";
  const int count = static_cast<int>(report.outputs.size());
  if (report.passed()) {
    text << "PASS: " << plural(count, "output") << " within tolerance of the golden data\n";
  } else {
    text << "FAIL: " << count_failed(report) << " of " << plural(count, "output") << " beyond tolerance"
         << (report.problems.empty() ? "" : ", " + plural(static_cast<int>(report.problems.size()), "other problem"))
         << "\n";
  }
  return text.str();
}

std::string to_json(const Report& report) {
  std::ostringstream text;
  text << "{\"passed\": " << (report.passed() ? "true" : "false") << ", \"model\": " << quoted(report.model)
       << ", \"onnxruntime\": " << quoted(report.library) << ", \"provider\": " << quoted(report.provider)
       << ", \"threads\": " << report.threads << ", \"nodes\": {";
  const char* separator = "";
  for (const auto& [provider, count] : report.nodes) {
    text << separator << quoted(provider) << ": " << count;
    separator = ", ";
  }
  text << "}, \"outputs\": [";
  separator = "";
  for (const OutputReport& output : report.outputs) {
    const Comparison& c = output.comparison;
    text << separator << "{\"file\": " << quoted(output.file) << ", \"name\": " << quoted(output.name)
         << ", \"kind\": " << quoted(output.kind) << ", \"max_abs\": " << json_number(c.max_abs)
         << ", \"max_rel\": " << json_number(c.max_rel) << ", \"limit\": " << json_number(c.limit)
         << ", \"share\": " << json_number(c.share) << ", \"index\": " << quoted(c.index)
         << ", \"verdict\": " << (c.passed ? "\"pass\"" : "\"fail\"") << ", \"problem\": " << quoted(c.problem) << "}";
    separator = ", ";
  }
  text << "], \"problems\": [";
  separator = "";
  for (const std::string& problem : report.problems) {
    text << separator << quoted(problem);
    separator = ", ";
  }
  text << "], \"latency_ms\": " << json_number(report.latency_ms) << ", \"repeats\": " << report.repeats << "}\n";
  return text.str();
}

}  // namespace replay
