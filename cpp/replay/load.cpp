#include "load.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <optional>
#include <thread>

#include "errors.h"
#include "golden.h"
#include "proven.h"
#include "session.h"

namespace jumpout::replay {
namespace {

using Clock = std::chrono::steady_clock;

// The allocators of several threads settle within this; a leak of one small answer per request is far more.
constexpr double kMemoryGrowth = 4.0;

struct Request {
  int images;
  std::vector<Tensor> inputs, answer;
};

double resident_mib() {
  std::ifstream stream("/proc/self/statm");
  int64_t total = 0, resident = 0;
  if (!(stream >> total >> resident)) throw NotVerifiable("/proc/self/statm: cannot be read");
  return static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE)) / (1 << 20);
}

// The first `images` rows of a tensor, over and over; a tensor without a batch axis stays as it is.
Tensor repeated(const Tensor& tensor, const Signature& signature, int images) {
  if (signature.shape.empty() || signature.shape[0] >= 0) return tensor;
  const size_t rows = static_cast<size_t>(tensor.shape[0]), row = tensor.bytes.size() / std::max<size_t>(rows, 1);
  Tensor result{tensor.name, tensor.dtype, tensor.shape, {}};
  result.shape[0] = images;
  for (size_t i = 0; i < static_cast<size_t>(images); ++i) {
    const auto start = tensor.bytes.begin() + static_cast<std::ptrdiff_t>(i % rows * row);
    result.bytes.insert(result.bytes.end(), start, start + static_cast<std::ptrdiff_t>(row));
  }
  return result;
}

// Runs the requests on all clients and returns the milliseconds of each.
std::vector<double> run_clients(const Session& session, const std::vector<Request>& kinds, const LoadOptions& options,
                                int requests, std::atomic<int64_t>& wrong) {
  std::vector<double> times(static_cast<size_t>(requests));
  std::atomic<int> next{0};
  std::optional<std::string> problem;
  std::mutex mutex;
  const auto client = [&] {
    try {
      for (int i = next++; i < requests; i = next++) {
        const Request& request = kinds[static_cast<size_t>(i) % kinds.size()];
        const auto start = Clock::now();
        const std::vector<Tensor> answer = session.run(request.inputs);
        times[static_cast<size_t>(i)] = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
        wrong += !std::equal(answer.begin(), answer.end(), request.answer.begin(), request.answer.end(),
                             [](const Tensor& a, const Tensor& b) { return a.shape == b.shape && a.bytes == b.bytes; });
      }
    } catch (const std::exception& error) {
      const std::lock_guard<std::mutex> lock(mutex);
      problem = error.what();
      next = requests;
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < options.clients; ++i) threads.emplace_back(client);
  for (std::thread& thread : threads) thread.join();
  if (problem) throw CheckFailed(*problem);
  return times;
}

}  // namespace

bool LoadReport::passed() const { return wrong == 0 && requests > 0 && memory_after - memory_before <= kMemoryGrowth; }

LoadReport run_load(const LoadOptions& options) {
  // One thread per request: the clients are what runs in parallel.
  const Session session(options.model, SessionSettings{});
  check_proven(options.model, session);
  session.refuse_random();
  const std::filesystem::path folder = std::filesystem::path(options.model).parent_path();
  const std::filesystem::path data = !options.data.empty() ? options.data : folder.empty() ? "." : folder.string();
  const GoldenSet golden = read_golden(data, session.inputs(), session.outputs()).front();

  std::vector<Request> kinds;
  for (const int images : options.batches) {
    Request request{images, {}, {}};
    for (size_t i = 0; i < golden.inputs.size(); ++i) {
      request.inputs.push_back(repeated(golden.inputs[i], session.inputs()[i], images));
    }
    request.answer = session.run(request.inputs);
    kinds.push_back(std::move(request));
  }

  LoadReport report;
  report.clients = options.clients;
  report.requests = options.requests;
  std::atomic<int64_t> wrong{0};
  run_clients(session, kinds, options, std::max(1, options.requests / 10), wrong);  // warms up
  report.memory_before = resident_mib();
  const auto start = Clock::now();
  std::vector<double> times = run_clients(session, kinds, options, options.requests, wrong);
  report.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  report.memory_after = resident_mib();
  report.wrong = wrong;
  for (int i = 0; i < options.requests; ++i) report.images += kinds[static_cast<size_t>(i) % kinds.size()].images;
  std::sort(times.begin(), times.end());
  report.median_ms = times[times.size() / 2];
  report.p99_ms = times[times.size() - 1 - times.size() / 100];
  return report;
}

}  // namespace jumpout::replay
