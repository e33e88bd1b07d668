// Entries of the CUDA path, on device pointers. Nothing here waits for the device, so all of it can be captured into a
// CUDA graph. Errors of the launch are thrown as std::runtime_error.
#pragma once

#include <cstdint>

#include "jumpout.h"

namespace jumpout {

// Elements of the int64 scratch buffer that the forward pass needs.
constexpr int kCudaScratch = 1024;

// As jumpout_forward_cpu; seed is a device pointer, stream a cudaStream_t, scratch kCudaScratch int64 on the device.
void jumpout_forward_cuda(const void* x, void* y, uint8_t* keep_bits, Stats* stats, const uint64_t* seed,
                          int64_t* scratch, int64_t n, int64_t rows, DType dtype, const Settings& settings, int device,
                          void* stream);

void jumpout_backward_cuda(const void* dy, const uint8_t* keep_bits, const Stats* stats, void* dx, int64_t n,
                           int64_t rows, DType dtype, int device, void* stream);

}  // namespace jumpout
