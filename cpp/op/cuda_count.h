// CUDA kernels that find the rate: how many elements are active, and from that the statistics of each row.
//   count      reads s bytes per element; a group of threads counts a row, or a part of one if there are few rows, and
//              leaves one number: nothing to clear and no atomic, and the sum is exact and the same each time
//   rate       adds the numbers of each row, samples the rate and computes the scale, once
//   count_all  both at once, for a tensor so small that one thread block counts it
#pragma once

#include <cstdint>

#include "cuda_pack.h"

namespace jumpout {
namespace {

constexpr int kThreads = 256, kWarp = 32;
constexpr int kCountPacks = 4;  // packs of a thread in a turn: loads in flight

__device__ __forceinline__ int64_t warp_sum(int64_t value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_down_sync(0xFFFFFFFF, value, offset);
  return value;
}

// Sum over kGroup threads, all of a warp or all of the thread block; valid in the first.
template <int kGroup>
__device__ __forceinline__ int64_t group_sum(int64_t value) {
  static_assert(kGroup == kWarp || kGroup == kThreads);
  value = warp_sum(value);
  if constexpr (kGroup == kThreads) {
    __shared__ int64_t per_warp[kThreads / kWarp];
    __syncthreads();  // the previous sum has been read
    if (threadIdx.x % kWarp == 0) per_warp[threadIdx.x / kWarp] = value;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int warp = 1; warp < kThreads / kWarp; ++warp) value += per_warp[warp];
    }
  }
  return value;
}

template <typename T>
__device__ __forceinline__ int active_in(const Pack<T>& pack) {
  int active = 0;
#pragma unroll
  for (int i = 0; i < kBlock; ++i) active += widen(pack.value[i]) > 0;
  return active;
}

// What this thread, one of kGroup, counts of the elements first <= i < last; of `parts` groups this is number `part`.
template <typename T, bool kAligned, int kGroup>
__device__ __forceinline__ int64_t count_part(const T* x, int64_t first, int64_t last, int part, int parts) {
  const int64_t whole = (first + kBlock - 1) / kBlock, whole_end = last / kBlock, end = (last + kBlock - 1) / kBlock;
  constexpr int kTurn = kGroup * kCountPacks;
  int64_t active = 0, index = first / kBlock + int64_t{part} * kTurn + threadIdx.x % kGroup;
  for (; index < end; index += int64_t{parts} * kTurn) {
    if (kAligned && index >= whole && index + (kCountPacks - 1) * kGroup < whole_end) {
      Pack<T> pack[kCountPacks];
#pragma unroll
      for (int k = 0; k < kCountPacks; ++k) pack[k] = load_whole(x, index + k * kGroup);
      int in_turn = 0;
#pragma unroll
      for (int k = 0; k < kCountPacks; ++k) in_turn += active_in(pack[k]);
      active += in_turn;
    } else {
#pragma unroll 1
      for (int64_t one = index; one < end && one < index + kTurn; one += kGroup) {
        if (kAligned && one >= whole && one < whole_end) {
          active += active_in(load_whole(x, one));
        } else {
          for (int64_t i = one * kBlock; i < (one + 1) * kBlock; ++i) {
            if (i >= first && i < last) active += widen(x[i]) > 0;
          }
        }
      }
    }
  }
  return active;
}

// Unit i of rows * parts is part i % parts of row i / parts; its number goes to counts[i * stride]. Four resident
// thread blocks leave the registers for the loads in flight.
template <typename T, bool kAligned, int kGroup>
__global__ void __launch_bounds__(kThreads, 3)
    count_kernel(const T* x, double* counts, int stride, int64_t rows, int64_t length, int parts) {
  const int64_t units = rows * parts, groups = int64_t{gridDim.x} * (kThreads / kGroup);
  for (int64_t unit = int64_t{blockIdx.x} * (kThreads / kGroup) + threadIdx.x / kGroup; unit < units; unit += groups) {
    // Rows are split only where all units are thread blocks, so that 32 bits hold their numbers.
    const int64_t row = parts == 1 ? unit : static_cast<uint32_t>(unit) / static_cast<uint32_t>(parts);
    const int part = static_cast<int>(unit - row * parts);
    const int64_t active =
        group_sum<kGroup>(count_part<T, kAligned, kGroup>(x, row * length, (row + 1) * length, part, parts));
    if (threadIdx.x % kGroup == 0) counts[unit * stride] = static_cast<double>(active);
  }
}

// kGroup threads a row, 1 or a thread block. `counts` may lie in `stats`.
template <int kGroup>
__global__ void __launch_bounds__(kThreads)
    rate_kernel(const double* counts, int stride, int parts, Stats* stats, const uint64_t* seed, int64_t rows,
                int64_t length, Settings settings) {
  const int64_t groups = int64_t{gridDim.x} * (kThreads / kGroup);
  for (int64_t row = int64_t{blockIdx.x} * (kThreads / kGroup) + threadIdx.x / kGroup; row < rows; row += groups) {
    int64_t active = 0;
    for (int part = static_cast<int>(threadIdx.x % kGroup); part < parts; part += kGroup) {
      active += static_cast<int64_t>(counts[(row * parts + part) * stride]);
    }
    if constexpr (kGroup > 1) active = group_sum<kGroup>(active);
    if (threadIdx.x % kGroup == 0) stats[row] = row_stats(settings, *seed, row, active, length);
  }
}

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    count_all_kernel(const T* x, Stats* stats, const uint64_t* seed, int64_t n, Settings settings) {
  const int64_t active = group_sum<kThreads>(count_part<T, kAligned, kThreads>(x, 0, n, 0, 1));
  if (threadIdx.x == 0) stats[0] = row_stats(settings, *seed, 0, active, n);
}

}  // namespace
}  // namespace jumpout
