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

// Eight elements. Pack number i holds elements 8 i to 8 i + 7 of a tensor, its last one perhaps fewer.
template <typename T>
struct alignas(16) Pack {
  T value[kBlock];
};

// A whole pack in pieces of 16 bytes, to which x must be aligned.
template <typename T>
__device__ __forceinline__ Pack<T> load_whole(const T* x, int64_t index) {
  Pack<T> pack;
  const auto* from = reinterpret_cast<const uint4*>(x + index * kBlock);
  auto* to = reinterpret_cast<uint4*>(&pack);
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(pack) / sizeof(uint4)); ++i) to[i] = from[i];
  return pack;
}

// Evict first: nobody reads y again before much else has passed through the cache.
template <typename T>
__device__ __forceinline__ void store_whole(T* y, int64_t index, const Pack<T>& pack) {
  auto* to = reinterpret_cast<uint4*>(y + index * kBlock);
  const auto* from = reinterpret_cast<const uint4*>(&pack);
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(pack) / sizeof(uint4)); ++i) __stcs(to + i, from[i]);
}

// Any pack of n elements at any address; zeros where there is none.
template <typename T>
__device__ __forceinline__ Pack<T> load_any(const T* x, int64_t index, int64_t n) {
  Pack<T> pack;
  const int64_t first = index * kBlock;
#pragma unroll
  for (int i = 0; i < kBlock; ++i) {
    if (first + i < n) {
      pack.value[i] = x[first + i];
    } else {
      narrow(0, &pack.value[i]);
    }
  }
  return pack;
}

template <typename T>
__device__ __forceinline__ void store_any(T* y, int64_t index, int64_t n, const Pack<T>& pack) {
  const int64_t first = index * kBlock;
#pragma unroll
  for (int i = 0; i < kBlock; ++i) {
    if (first + i < n) y[first + i] = pack.value[i];
  }
}

}  // namespace
}  // namespace jumpout
