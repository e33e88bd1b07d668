// Many clients on one session: whether every answer is right, whether memory stays flat, and how fast it is.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "compare.h"
#include "jumpout/verification.h"
#include "latencies.h"
#include "replay.h"

namespace jumpout::replay {

struct LoadOptions : Setup {
  explicit LoadOptions(const Setup& setup) : Setup(setup) {}

  int clients = 4, requests = 20000, warmup = 2000;
  double seconds = 0;  // to send for, in place of a number of requests; 0 where that is given
  std::vector<int> batches = {1, 2, 7, 16};
  bool batches_given = false;  // whether somebody has asked for these
};

// What is known of an output after all answers.
struct LoadOutput {
  std::string name, kind;
  Comparison worst;  // of the answers that came closest to their limit
};

struct LoadReport {
  std::string library;
  int clients = 0;
  int64_t warmup = 0, requests = 0, samples = 0;  // sent; `requests` and `samples` after the warm-up
  int64_t wrong = 0, differing = 0;               // answers of both: beyond tolerance, and with other bits than alone
  bool must_repeat = true, without_manifest = false;
  double seconds = 0;
  Latencies latencies;
  std::vector<LoadOutput> outputs;
  std::optional<double> memory_before, memory_after;  // resident, in MiB, after the warm-up and at the end
};

// What memory may grow by, in MiB: the allocators of several threads settle within this, and a leak of one small answer
// per request is far more.
constexpr double kMemoryGrowth = 4;

// Sends requests, in turn of each golden set and batch size, the golden samples over and over. Every answer is compared
// with the golden outputs, and with the bits that the same request had before, when nothing else ran. Throws Error.
LoadReport run_load(const LoadOptions& options);

Verification verification_of(const LoadOptions& options, const LoadReport& report);

}  // namespace jumpout::replay
