// Launching kernels: how many thread blocks, and what an error says.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda_count.h"

namespace jumpout {
namespace {

inline int attribute(cudaDeviceAttr which, int device);

// Of failures of kernels the host learns at some later call: at a launch of ours, they are somebody else's.
inline bool is_of_earlier_work(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
      return true;
    default:
      return false;
  }
}

inline std::string explain(cudaError_t error, int device) {
  const std::string text = cudaGetErrorString(error);
  if (is_of_earlier_work(error)) {
    return "an earlier CUDA operation failed, not jumpout (" + text +
           "): set CUDA_LAUNCH_BLOCKING=1 to see which one, and restart the process";
  }
  if (error == cudaErrorInsufficientDriver || error == cudaErrorUnsupportedPtxVersion) {
    return "the NVIDIA driver is too old for the CUDA " + std::to_string(CUDART_VERSION / 1000) + "." +
           std::to_string(CUDART_VERSION % 1000 / 10) +
           " that jumpout was compiled with: update the driver, or build jumpout with the nvcc of an older CUDA";
  }
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) {
    const std::string number = std::to_string(attribute(cudaDevAttrComputeCapabilityMajor, device)) +
                               std::to_string(attribute(cudaDevAttrComputeCapabilityMinor, device));
    return "jumpout was not compiled for this GPU (sm_" + number +
           "): build it with pip install . -C cmake.define.CMAKE_CUDA_ARCHITECTURES=" + number;
  }
  return "jumpout could not use the CUDA device: " + text;
}

// Leaves no error behind for whoever asks next.
inline void check(cudaError_t error, int device) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error(explain(error, device));
}

inline int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), device);
  return value;
}

// More thread blocks than this are never resident at once, whatever the kernel.
inline int most_resident(int device) {
  return attribute(cudaDevAttrMultiProcessorCount, device) *
         std::max(attribute(cudaDevAttrMaxThreadsPerMultiProcessor, device) / kThreads, 1);
}

// Thread blocks of a kernel that fill the device. The runtime is asked once for each kernel and device.
template <typename... Parameters>
int resident(void (*kernel)(Parameters...), int device) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, int> known;
  const std::lock_guard lock(mutex);
  int& blocks = known[{reinterpret_cast<const void*>(kernel), device}];
  if (blocks == 0) {
    int per_multiprocessor = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, reinterpret_cast<const void*>(kernel),
                                                        kThreads, 0),
          device);
    blocks = std::max(per_multiprocessor, 1) * attribute(cudaDevAttrMultiProcessorCount, device);
  }
  return blocks;
}

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A device, which must be the current one, and a stream of it.
struct Queue {
  int device;
  cudaStream_t stream;

  // As many thread blocks as there is work for, and no more than fill the device. An ordinary function call to any C++
  // compiler, unlike <<<>>>: the tests compile this file without nvcc, too.
  template <typename... Parameters, typename... Arguments>
  void launch(void (*kernel)(Parameters...), int64_t blocks, Arguments... arguments) const {
    cudaLaunchConfig_t config{};
    config.gridDim = static_cast<unsigned>(std::clamp<int64_t>(blocks, 1, resident(kernel, device)));
    config.blockDim = kThreads;
    config.stream = stream;
    check(cudaLaunchKernelEx(&config, kernel, arguments...), device);
  }
};

}  // namespace
}  // namespace jumpout
