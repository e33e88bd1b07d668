// CUDA kernels as host C++, for tests without a GPU: compile a .cu file with this included first. It must launch
// through cudaLaunchKernelEx. Only what the kernels here use is there: one-dimensional launches, __syncthreads,
// shuffles of whole warps; anything else does not compile, or ends the program.
//
// Every CUDA thread is a fiber. Threads switch at barriers and shuffles only, in a seeded and often unfair order, and
// the thread blocks of a launch run in a seeded order on several OS threads at once, each with a __shared__ of its own.
// With ThreadSanitizer every CUDA thread is a thread, and only __syncthreads and the end of a launch order them: it
// reports a missing barrier whatever the order was, as compute-sanitizer's racecheck does, and races between thread
// blocks, too.
#pragma once

// NVIDIA's own: types, attributes, declarations of the runtime, and the conversions of halves as the host does them.
#include <cuda_runtime.h>
//
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>

#undef __shared__
#define __shared__ static thread_local
#undef __launch_bounds__
#define __launch_bounds__(...)
#define __syncthreads() ::emulator::barrier()
#define __shfl_down_sync ::emulator::shuffle_down
#define cudaLaunchKernelEx ::emulator::launch_kernel

namespace emulator {

struct Position {
  unsigned thread, block, threads, blocks;
};
const Position& position();  // of the CUDA thread that asks

template <unsigned Position::* kMember>
struct Index {
  struct {
    operator unsigned() const { return position().*kMember; }
  } x;
};

void barrier();

// Every lane of the warp gives a value and gets that of lane `source`.
uint64_t exchange(uint32_t mask, uint64_t value, int source);

template <typename T>
T shuffle_down(uint32_t mask, T value, int delta) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  const int lane = static_cast<int>(position().thread % 32), source = lane + delta < 32 ? lane + delta : lane;
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(mask, bits, source);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Waits for the end of the launch.
cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& thread);

template <typename... Parameters, typename... Arguments>
cudaError_t launch_kernel(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  // The parameters are copied once for the launch, as to constant memory.
  return [&](Parameters... values) {
    return launch(*config, [&] { kernel(values...); });
  }(std::forward<Arguments>(arguments)...);
}

// What the runtime says of the devices.
struct Device {
  int multiprocessors, threads;  // threads resident on each
};
constexpr int kDevices = 2;
extern Device devices[kDevices];
extern cudaError_t next_launch;  // what the next launch returns in place of running, if it is no success

// Why the device refuses a launch, or success.
cudaError_t refusal(const cudaLaunchConfig_t& config);

void configure(uint64_t seed, int workers);  // seed of all orders; OS threads that run blocks, as of the first launch
extern long launches, switches;

}  // namespace emulator

inline constexpr emulator::Index<&emulator::Position::thread> threadIdx{};
inline constexpr emulator::Index<&emulator::Position::block> blockIdx{};
inline constexpr emulator::Index<&emulator::Position::threads> blockDim{};
inline constexpr emulator::Index<&emulator::Position::blocks> gridDim{};

template <typename T>
void __stcs(T* to, T value) {
  *to = value;
}
