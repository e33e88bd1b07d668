#include "load.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

#include "errors.h"
#include "platform.h"
#include "proven.h"
#include "request.h"
#include "session.h"
#include "tensor.h"

namespace jumpout::replay {
namespace {

using Clock = std::chrono::steady_clock;

// What the answers of one client, or of all, come to.
struct Tally {
  int64_t requests = 0, samples = 0, wrong = 0, differing = 0;
  Latencies latencies;
  std::vector<Comparison> worst;  // by output

  void note(size_t output, const Comparison& found) {
    if (worst.size() <= output) worst.resize(output + 1);
    const bool is_worse =
        worst[output].index.empty() ? worst[output].problem.empty() : found.share > worst[output].share;
    if (is_worse || (worst[output].passed && !found.passed)) worst[output] = found;
  }

  void add(const Tally& other) {
    requests += other.requests;
    samples += other.samples;
    wrong += other.wrong;
    differing += other.differing;
    latencies.add(other.latencies);
    for (size_t i = 0; i < other.worst.size(); ++i) note(i, other.worst[i]);
  }
};

bool same_bits(const std::vector<Tensor>& one, const std::vector<Tensor>& two) {
  return std::equal(one.begin(), one.end(), two.begin(), two.end(),
                    [](const Tensor& a, const Tensor& b) { return a.shape == b.shape && a.bytes == b.bytes; });
}

// Whether an answer is within tolerance.
bool judge(const Request& request, const std::vector<Tensor>& answer, Tally& tally) {
  bool right = true;
  for (size_t i = 0; i < answer.size(); ++i) {
    const Comparison found = compare(request.golden[i], answer[i], request.allowed[i]);
    tally.note(i, found);
    right = right && found.passed;
  }
  return right;
}

class Clients {
 public:
  Clients(const Session& session, const std::vector<Request>& requests, int count)
      : session_(session), requests_(requests), count_(count) {
    for (const Request& request : requests_) alone_right_.push_back(judge(request, request.alone, alone_));
  }

  // What the answers were that came when nothing else ran.
  const Tally& alone() const { return alone_; }

  // Sends that many requests, or until the time has come if there is one.
  Tally send(int64_t most, const std::optional<Clock::time_point>& end) {
    std::atomic<int64_t> next{0};
    std::atomic<bool> stop{false};
    std::optional<std::string> problem;
    Tally all;
    std::mutex mutex;
    const auto client = [&] {
      Tally own;
      try {
        for (int64_t i = next++; !stop && (end ? Clock::now() < *end : i < most); i = next++) one(i, own);
      } catch (const std::exception& error) {
        const std::lock_guard<std::mutex> lock(mutex);
        problem = error.what();
        stop = true;
      }
      const std::lock_guard<std::mutex> lock(mutex);
      all.add(own);
    };
    std::vector<std::thread> threads;
    for (int i = 0; i < count_; ++i) threads.emplace_back(client);
    for (std::thread& thread : threads) thread.join();
    if (problem) throw CheckFailed(*problem);
    return all;
  }

 private:
  void one(int64_t number, Tally& tally) const {
    const size_t kind = static_cast<size_t>(number) % requests_.size();
    const Request& request = requests_[kind];
    const auto start = Clock::now();
    const std::vector<Tensor> answer = session_.run(request.inputs);
    tally.latencies.add(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
    ++tally.requests;
    tally.samples += request.samples;
    const bool same = same_bits(answer, request.alone);
    tally.differing += !same;
    tally.wrong += !(same ? alone_right_[kind] : judge(request, answer, tally));
  }

  const Session& session_;
  const std::vector<Request>& requests_;
  const int count_;
  Tally alone_;
  std::vector<char> alone_right_;
};

}  // namespace

LoadReport run_load(const LoadOptions& options) {
  // One thread per request: the clients are what runs in parallel.
  const Session session(options.model, {options.provider, options.threads});
  check_proven(session, options);
  session.refuse_random();
  const std::vector<Tolerance> tolerances = tolerances_of(session, options);
  const std::vector<GoldenSet> sets = golden_of(session, options);
  const std::vector<Request> requests = make_requests(session, sets, tolerances, options.batches);
  if (options.batches_given && std::any_of(requests.begin(), requests.end(), [&](const Request& request) {
        return std::find(options.batches.begin(), options.batches.end(), request.samples) == options.batches.end();
      })) {
    throw UsageError(shown(options.model) + ": it takes batches of " + std::to_string(requests[0].samples) +
                     " only; leave --batches out");
  }

  LoadReport report;
  report.library = library_version();
  report.clients = options.clients;
  report.without_manifest = options.without_manifest;
  report.must_repeat = options.provider.must_repeat;
  Clients clients(session, requests, options.clients);
  Tally all = clients.alone();
  const Tally warmup = clients.send(options.warmup, std::nullopt);
  report.memory_before = resident_mib();
  const auto start = Clock::now();
  const auto length = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(options.seconds));
  const Tally timed =
      clients.send(options.requests, options.seconds > 0 ? std::optional(start + length) : std::nullopt);
  report.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  report.memory_after = resident_mib();
  report.warmup = warmup.requests;
  report.requests = timed.requests;
  report.samples = timed.samples;
  report.latencies = timed.latencies;
  all.add(warmup);
  all.add(timed);
  report.wrong = all.wrong;
  report.differing = all.differing;
  for (size_t i = 0; i < all.worst.size(); ++i) {
    const Tensor& golden = requests[0].golden[i];
    report.outputs.push_back({golden.name, dtype_name(golden.dtype), all.worst[i]});
  }
  return report;
}

}  // namespace jumpout::replay
