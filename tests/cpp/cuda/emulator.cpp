// The scheduler of emulator.h. Compiled without sanitizers, so that they see the accesses of kernels and tests alone.
#include "emulator.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "fiber.h"

#ifdef EMULATOR_TSAN
#include <sanitizer/tsan_interface.h>
#else
#define __tsan_acquire(clock)
#define __tsan_release(clock)
#endif

namespace emulator {
namespace {

constexpr int kWarp = 32;
using Random = std::mt19937_64;

template <typename... Values>
[[noreturn]] void fail(const char* what, Values... values) {
  std::fprintf(stderr, "emulator: ");
  std::fprintf(stderr, what, values...);
  std::fprintf(stderr, "\n");
  std::_Exit(70);
}

void run_thread();  // what a fiber does

struct Thread {
  enum State { kReady, kAtBarrier, kAtShuffle, kDone } state = kReady;
  Position position;
  int priority = 0;
  Fiber fiber{run_thread};
};

struct Warp {
  // Two generations: a lane may give its next value before another has read this one.
  uint64_t value[2][kWarp] = {};
  int arrived = 0, generation[kWarp] = {};
};

// Orders in which the threads of a block go on: any; warps by priority, and lanes in them; threads by priority; first
// to last; last to first.
enum class Order { kRandom, kWarps, kThreads, kForwards, kBackwards, kCount };

// An OS thread and the thread blocks it runs, one after the other, on the same fibers.
class Worker {
 public:
  void run_block(const std::function<void()>& thread, unsigned block, const cudaLaunchConfig_t& config, uint64_t seed);
  Thread& running() { return *running_; }
  void wait(Thread::State state);  // lets others run until the state of this thread is kReady
  void run();
  void barrier();
  uint64_t exchange(uint64_t value, int source);

  long switches = 0;

 private:
  void begin(unsigned block, const cudaLaunchConfig_t& config);
  std::vector<Thread*> ready();

  std::vector<std::unique_ptr<Thread>> threads_;  // the first size_ are those of the block
  std::vector<Warp> warps_;
  int size_ = 0, at_barrier_ = 0, done_ = 0;
  Thread* running_ = nullptr;
  const std::function<void()>* work_ = nullptr;
  Order order_ = Order::kRandom;
  Random random_;
  Fiber scheduler_;
  char clock_ = 0;  // its address is what ThreadSanitizer knows the barrier by
};

thread_local Worker* worker = nullptr;
[[maybe_unused]] char launch_clock = 0;

void run_thread() {
  Fiber::entered();
  for (;;) worker->run();
}

void Worker::run() {
  __tsan_acquire(&launch_clock);
  __tsan_acquire(&clock_);
  (*work_)();
  __tsan_release(&launch_clock);
  __tsan_release(&clock_);
  ++done_;
  wait(Thread::kDone);
}

void Worker::wait(Thread::State state) {
  running_->state = state;
  running_->fiber.switch_to(scheduler_);
}

void Worker::begin(unsigned block, const cudaLaunchConfig_t& config) {
  size_ = static_cast<int>(config.blockDim.x);
  while (static_cast<int>(threads_.size()) < size_) threads_.push_back(std::make_unique<Thread>());
  warps_.assign((size_ + kWarp - 1) / kWarp, Warp{});
  at_barrier_ = done_ = 0;
  order_ = static_cast<Order>(random_() % static_cast<int>(Order::kCount));
  std::vector<int> of_warp(warps_.size());
  for (int& priority : of_warp) priority = static_cast<int>(random_() % 1024) * 1024;
  for (int i = 0; i < size_; ++i) {
    const int of_thread = static_cast<int>(random_() % 1024);
    threads_[i]->state = Thread::kReady;
    threads_[i]->position = {static_cast<unsigned>(i), block, config.blockDim.x, config.gridDim.x};
    threads_[i]->priority = order_ == Order::kWarps      ? of_warp[i / kWarp] + of_thread
                            : order_ == Order::kThreads  ? of_thread
                            : order_ == Order::kForwards ? -i
                                                         : i;
  }
}

std::vector<Thread*> Worker::ready() {
  std::vector<Thread*> ready;
  for (int i = 0; i < size_; ++i) {
    if (threads_[i]->state == Thread::kReady) ready.push_back(threads_[i].get());
  }
  if (ready.empty()) {
    fail("deadlock: %d threads wait at __syncthreads, %d at a shuffle, %d have left", at_barrier_,
         size_ - at_barrier_ - done_, done_);
  }
  if (order_ == Order::kRandom) {
    std::shuffle(ready.begin(), ready.end(), random_);
  } else {
    std::stable_sort(ready.begin(), ready.end(), [](Thread* a, Thread* b) { return a->priority > b->priority; });
  }
  return ready;
}

void Worker::run_block(const std::function<void()>& thread, unsigned block, const cudaLaunchConfig_t& config,
                       uint64_t seed) {
  work_ = &thread;
  random_.seed(seed);
  begin(block, config);
  while (done_ < size_) {
    const std::vector<Thread*> next = ready();
    // A few at a time: whoever became ready meanwhile takes part in the next choice.
    const size_t turns = 1 + random_() % next.size();
    for (size_t i = 0; i < turns; ++i) {
      running_ = next[i];
      ++switches;
      scheduler_.switch_to(running_->fiber);
    }
  }
}

void Worker::barrier() {
  __tsan_release(&clock_);
  if (done_ > 0) fail("__syncthreads after %d threads of the block have left", done_);
  if (++at_barrier_ == size_) {
    at_barrier_ = 0;
    for (int i = 0; i < size_; ++i) threads_[i]->state = Thread::kReady;
    wait(Thread::kReady);
  } else {
    wait(Thread::kAtBarrier);
  }
  __tsan_acquire(&clock_);
}

uint64_t Worker::exchange(uint64_t value, int source) {
  const int index = static_cast<int>(running_->position.thread), lane = index % kWarp, first = index - lane;
  if (first + kWarp > size_) fail("a shuffle in a warp of %d threads", size_ - first);
  Warp& warp = warps_[index / kWarp];
  const uint64_t* values = warp.value[warp.generation[lane]++ % 2];
  const_cast<uint64_t*>(values)[lane] = value;
  if (++warp.arrived == kWarp) {
    warp.arrived = 0;
    for (int i = 0; i < kWarp; ++i) threads_[first + i]->state = Thread::kReady;
    wait(Thread::kReady);
  } else {
    wait(Thread::kAtShuffle);
  }
  return values[source];
}

// OS threads that stay, because the threads' fibers do; each launch gives them work.
class Pool {
 public:
  explicit Pool(int workers) : size_(workers) {
    for (int i = 0; i < workers; ++i) std::thread([this] { loop(); }).detach();
  }

  void run(const std::function<void(Worker&)>& work) {
    std::unique_lock lock(mutex_);
    work_ = &work;
    ++launch_;
    busy_ = size_;
    wake_.notify_all();
    idle_.wait(lock, [&] { return busy_ == 0; });
  }

 private:
  void loop() {
    Worker mine;
    worker = &mine;
    std::unique_lock lock(mutex_);
    for (long seen = 0;;) {
      wake_.wait(lock, [&] { return launch_ != seen; });
      seen = launch_;
      lock.unlock();
      (*work_)(mine);
      lock.lock();
      if (--busy_ == 0) idle_.notify_all();
    }
  }

  const int size_;
  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  long launch_ = 0;
  int busy_ = 0;
  const std::function<void(Worker&)>* work_ = nullptr;
};

Random orders;
int workers = 1;

}  // namespace

long launches = 0, switches = 0;

const Position& position() { return worker->running().position; }
void barrier() { worker->barrier(); }

uint64_t exchange(uint32_t mask, uint64_t value, int source) {
  if (mask != 0xFFFFFFFF) fail("only shuffles of whole warps, not of lanes %08x", mask);
  return worker->exchange(value, source);
}

void configure(uint64_t seed, int threads) {
  orders.seed(seed);
  workers = threads;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  const dim3 blocks = config.gridDim, threads = config.blockDim;
  if (const cudaError_t error = refusal(config); error != cudaSuccess) return error;
  if (blocks.y * blocks.z * threads.y * threads.z != 1) fail("only one-dimensional launches");
  static Pool& pool = *new Pool(workers);
  ++launches;
  std::vector<unsigned> order(blocks.x);
  for (unsigned i = 0; i < blocks.x; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), orders);
  const uint64_t seed = orders();
  std::atomic<size_t> next{0};
  std::atomic<long> turns{0};
  __tsan_release(&launch_clock);
  pool.run([&](Worker& mine) {
    mine.switches = 0;
    for (size_t k; (k = next++) < order.size();) {
      // By the block, so that the order within it does not depend on which OS thread got it.
      mine.run_block(thread, order[k], config, seed + order[k]);
    }
    turns += mine.switches;
  });
  __tsan_acquire(&launch_clock);
  switches += turns;
  return cudaSuccess;
}

}  // namespace emulator
