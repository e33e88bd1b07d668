// What one thread of a CUDA kernel moves at a time: eight elements, computed in float or double.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "jumpout.h"

namespace jumpout {
namespace {

template <typename T>
struct Element {
  using Compute = float;
};
template <>
struct Element<double> {
  using Compute = double;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ void narrow(float x, float* out) { *out = x; }
__device__ __forceinline__ void narrow(double x, double* out) { *out = x; }
__device__ __forceinline__ void narrow(float x, __half* out) { *out = __float2half_rn(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16* out) { *out = __float2bfloat16_rn(x); }

// Eight elements, moved in pieces of 16 bytes where the address allows it.
template <typename T>
struct alignas(16) Pack {
  T value[kBlock];
};

template <typename T, bool kAligned>
__device__ __forceinline__ Pack<T> load(const T* x, int64_t block, int64_t n) {
  Pack<T> pack;
  const int64_t first = block * kBlock;
  if (kAligned && first + kBlock <= n) {
    const auto* from = reinterpret_cast<const uint4*>(x + first);
    auto* to = reinterpret_cast<uint4*>(&pack);
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(pack) / sizeof(uint4)); ++i) to[i] = from[i];
  } else {
#pragma unroll
    for (int i = 0; i < kBlock; ++i) {
      if (first + i < n) {
        pack.value[i] = x[first + i];
      } else {
        narrow(0, &pack.value[i]);
      }
    }
  }
  return pack;
}

// Evict first: nobody reads y again before much else has passed through the cache.
template <typename T, bool kAligned>
__device__ __forceinline__ void store(T* y, int64_t block, int64_t n, const Pack<T>& pack) {
  const int64_t first = block * kBlock;
  if (kAligned && first + kBlock <= n) {
    auto* to = reinterpret_cast<uint4*>(y + first);
    const auto* from = reinterpret_cast<const uint4*>(&pack);
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(pack) / sizeof(uint4)); ++i) __stcs(to + i, from[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kBlock; ++i) {
      if (first + i < n) y[first + i] = pack.value[i];
    }
  }
}

}  // namespace
}  // namespace jumpout
