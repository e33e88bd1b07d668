// The CUDA runtime as far as it is called here, on the host's memory.
#include <cstdlib>
#include <cstring>

#include "emulator.h"

namespace emulator {
Device device;
}

extern "C" {

cudaError_t cudaGetDevice(int* index) { return *index = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int index) { return index == 0 ? cudaSuccess : cudaErrorInvalidDevice; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  if (attribute != cudaDevAttrMultiProcessorCount) return cudaErrorInvalidValue;
  return *value = emulator::device.multiprocessors, cudaSuccess;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the emulator"; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

// Ends where it is said to, so that AddressSanitizer sees the first byte beyond it.
cudaError_t cudaMalloc(void** memory, size_t size) {
  return posix_memalign(memory, 256, size) == 0 ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
  return std::memcpy(to, from, size), cudaSuccess;
}

}  // extern "C"
