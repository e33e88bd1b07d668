// Many clients on one session: whether every answer is right, whether memory stays flat, and how fast it is.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace jumpout::replay {

struct LoadOptions {
  std::string model, data;
  int clients = 4, requests = 20000;
  std::vector<int> batches = {1, 2, 7, 16};
  bool json = false;
};

struct LoadReport {
  int clients = 0, requests = 0;
  int64_t images = 0, wrong = 0;
  double seconds = 0, median_ms = 0, p99_ms = 0;
  double memory_before = 0, memory_after = 0;  // resident, in MiB, after a tenth of the requests more, and at the end
  bool passed() const;
};

// Sends `requests` requests, in turn of each batch size, the golden inputs over and over. An answer is right if it has
// the bits that the same batch had before, when nothing else ran. Throws Error.
LoadReport run_load(const LoadOptions& options);

}  // namespace jumpout::replay
