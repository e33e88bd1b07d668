// Entries of the CPU kernels, on raw pointers.
#pragma once

#include <cstdint>

#include "jumpout.h"

namespace jumpout {

// Reads x and writes y (may be x), one keep bit per element and one Stats per row.
//   x, y: n elements in memory order; rows: 1, or the number of samples, which must divide n
//   keep_bits: (n + 7) / 8 bytes, bit i % 8 of byte i / 8 belongs to element i; unused bits are 0
// Three passes over x in all: one to count when q is needed, one to read, one to write.
void jumpout_forward_cpu(const void* x, void* y, uint8_t* keep_bits, Stats* stats, uint64_t seed, int64_t n,
                         int64_t rows, DType dtype, const Settings& settings, int threads);

// dx = bit ? dy * scale of its row : 0.
void jumpout_backward_cpu(const void* dy, const uint8_t* keep_bits, const Stats* stats, void* dx, int64_t n,
                          int64_t rows, DType dtype, int threads);

}  // namespace jumpout
