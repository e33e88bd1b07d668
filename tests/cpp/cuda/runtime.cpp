// The CUDA runtime as far as it is called here, on the host's memory.
#include <chrono>
#include <cstdlib>
#include <cstring>

#include "emulator.h"

namespace emulator {
// The small one makes thread blocks walk their loops several times.
Device devices[] = {{1, 1280}, {10, 2304}};
cudaError_t next_launch = cudaSuccess;
}  // namespace emulator

namespace {

using Clock = std::chrono::steady_clock;

cudaError_t last_error = cudaSuccess;
int current = 0;

cudaError_t failed(cudaError_t error) { return last_error = error; }

}  // namespace

extern "C" {

cudaError_t cudaGetDevice(int* index) { return *index = current, cudaSuccess; }
cudaError_t cudaSetDevice(int index) {
  if (index < 0 || index >= emulator::kDevices) return failed(cudaErrorInvalidDevice);
  return current = index, cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int index) {
  if (index < 0 || index >= emulator::kDevices) return failed(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      return *value = emulator::devices[index].multiprocessors, cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return *value = emulator::devices[index].threads, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = 7, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = 5, cudaSuccess;
    default:
      return failed(cudaErrorInvalidValue);
  }
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads, size_t) {
  // One less than the threads would allow, as if registers were short.
  return *blocks = emulator::devices[current].threads / threads - 1, cudaSuccess;
}

cudaError_t cudaPeekAtLastError() { return last_error; }
cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "an error of the emulator";
}

// Ends where it is said to, so that AddressSanitizer sees the first byte beyond it.
cudaError_t cudaMalloc(void** memory, size_t size) {
  return posix_memalign(memory, 256, size) == 0 ? cudaSuccess : failed(cudaErrorMemoryAllocation);
}
cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
  return std::memcpy(to, from, size), cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, size, kind);
}

// Everything has happened when it was called for, so an event is the time of its record.
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return *event = reinterpret_cast<cudaEvent_t>(new Clock::time_point), cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  return *reinterpret_cast<Clock::time_point*>(event) = Clock::now(), cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t stop) {
  const auto passed = *reinterpret_cast<Clock::time_point*>(stop) - *reinterpret_cast<Clock::time_point*>(start);
  return *milliseconds = std::chrono::duration<float, std::milli>(passed).count(), cudaSuccess;
}

}  // extern "C"

namespace emulator {

cudaError_t refusal(const cudaLaunchConfig_t& config) {
  if (next_launch != cudaSuccess) {
    const cudaError_t error = next_launch;
    next_launch = cudaSuccess;
    return failed(error);
  }
  const unsigned blocks = config.gridDim.x, threads = config.blockDim.x;
  return blocks == 0 || threads == 0 || threads > 1024 ? failed(cudaErrorInvalidConfiguration) : cudaSuccess;
}

}  // namespace emulator
