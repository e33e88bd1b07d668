// Entries of the CUDA path, on device pointers of `device`, which must be the current one. Nothing here waits for the
// device, so all of it can be captured into a CUDA graph. Errors of the launch are thrown as std::runtime_error.
#pragma once

#include <cstdint>

#include "jumpout.h"

namespace jumpout {

// Elements of the scratch buffer that the forward pass needs; none for small tensors and for many rows.
int64_t jumpout_scratch_cuda(int64_t n, int64_t rows, int device);

// As jumpout_forward_cpu; seed is a device pointer, stream a cudaStream_t, scratch what jumpout_scratch_cuda asks for.
void jumpout_forward_cuda(const void* x, void* y, uint8_t* keep_bits, Stats* stats, const uint64_t* seed,
                          double* scratch, int64_t n, int64_t rows, DType dtype, const Settings& settings, int device,
                          void* stream);

void jumpout_backward_cuda(const void* dy, const uint8_t* keep_bits, const Stats* stats, void* dx, int64_t n,
                           int64_t rows, DType dtype, int device, void* stream);

}  // namespace jumpout
