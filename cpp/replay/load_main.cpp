// jumpout-load: many clients on one session of an exported model.
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <iostream>
#include <sstream>

#include "errors.h"
#include "load.h"
#include "options.h"

namespace {

using jumpout::replay::LoadOptions;
using jumpout::replay::LoadReport;

constexpr char kUsage[] =
    R"(usage: jumpout-load MODEL.onnx [--data DIR] [--clients N] [--requests N] [--batches 1,2,7,16] [--json]

Sends the golden inputs to one session from several threads, in batches of several sizes. Every answer must have the
bits it has when nothing else runs, and memory must stay flat.

exit codes: 0 passed, 1 a check failed, 2 wrong usage or an unusable file, 3 could not be verified here
)";

std::vector<int> parse_batches(const std::string& text) {
  std::vector<int> batches;
  std::istringstream stream(text);
  for (std::string word; std::getline(stream, word, ',');) {
    int value = 0;
    const auto [stop, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    if (error != std::errc() || stop != word.data() + word.size() || value < 1 || value > 65536) {
      throw jumpout::replay::UsageError("--batches must be numbers in [1, 65536] such as 1,2,7, got " +
                                        jumpout::replay::one_line(text));
    }
    batches.push_back(value);
  }
  if (batches.empty())
    throw jumpout::replay::UsageError("--batches must be numbers in [1, 65536] such as 1,2,7, got none");
  return batches;
}

void print(const LoadReport& report, bool json) {
  const char* pattern =
      json ? "{\"passed\": %s, \"clients\": %d, \"requests\": %d, \"images\": %lld, \"wrong\": %lld, "
             "\"requests_per_second\": %.1f, \"images_per_second\": %.1f, \"median_ms\": %.4f, \"p99_ms\": %.4f, "
             "\"memory_before_mib\": %.2f, \"memory_after_mib\": %.2f}\n"
           : "%s: %d clients, %d requests, %lld images, %lld wrong answers\n"
             "%.1f requests and %.1f images per second, %.3f ms median, %.3f ms 99th percentile\n"
             "memory: %.2f MiB, %.2f MiB at the end\n";
  const char* verdict = json ? (report.passed() ? "true" : "false") : (report.passed() ? "PASS" : "FAIL");
  std::printf(pattern, verdict, report.clients, report.requests, static_cast<long long>(report.images),
              static_cast<long long>(report.wrong), report.requests / report.seconds,
              static_cast<double>(report.images) / report.seconds, report.median_ms, report.p99_ms,
              report.memory_before, report.memory_after);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::vector<std::string> words(argv + 1, argv + argc);
    if (std::find(words.begin(), words.end(), "--help") != words.end()) {
      std::cout << kUsage;
      return jumpout::replay::kPassed;
    }
    const jumpout::replay::Arguments arguments(words, {"--data", "--clients", "--requests", "--batches"}, {"--json"});
    LoadOptions options;
    options.model = arguments.model();
    options.data = arguments.text("--data", "");
    options.clients = arguments.number("--clients", options.clients, 1024);
    options.requests = arguments.number("--requests", options.requests, 100000000);
    options.batches = parse_batches(arguments.text("--batches", "1,2,7,16"));
    const LoadReport report = jumpout::replay::run_load(options);
    print(report, arguments.has("--json"));
    return report.passed() ? jumpout::replay::kPassed : static_cast<int>(jumpout::Problem::kFailed);
  } catch (const jumpout::Error& error) {
    std::cerr << "jumpout-load: " << error.what() << "\n";
    return jumpout::replay::exit_code(error);
  } catch (const std::exception& error) {
    std::cerr << "jumpout-load: " << jumpout::replay::one_line(error.what()) << "\n";
    return static_cast<int>(jumpout::Problem::kUnusable);
  }
}
