// CUDA kernels that move everything once.
//   apply      reads s bytes per element, writes s + 1/8; walks backwards, so that what count read last is served from
//              the L2 cache
//   backward   reads s + 1/8, writes s
// Each for one row, where a thread takes two packs at a time, and for several, where a pack may span them.
#pragma once

#include <cstdint>

#include "cuda_count.h"
#include "cuda_pack.h"

namespace jumpout {
namespace {

constexpr int kPacks = 2;  // packs of a thread in a turn: loads in flight

// Element i of a block is dropped where keep_byte says so: comparing a half of a random word with the threshold is
// comparing the word, its lower half moved up, with the threshold moved up.
__device__ __forceinline__ bool decide(const Philox& random, int i, uint32_t threshold) {
  const uint32_t word = random.word[i / 2];
  return (i % 2 ? word : word << 16) >= threshold << 16;
}

// Scales or drops an element in place; with kRelu it is dropped, too, where torch's relu gives 0. NaN passes.
template <bool kRelu, typename T>
__device__ __forceinline__ bool jump(T* element, bool keep, typename Element<T>::Compute factor) {
  const auto value = widen(*element);
  if (kRelu) keep = keep && !(value <= 0);
  narrow(keep ? value * factor : 0, element);
  return keep;
}

// The whole pack, or its first `exist` elements; returns the bits of those that are kept.
template <bool kRelu, bool kWhole, typename T>
__device__ __forceinline__ uint8_t jump_pack(Pack<T>* pack, const Philox& random, uint32_t threshold,
                                             typename Element<T>::Compute factor, int64_t exist) {
  uint32_t byte = 0;
#pragma unroll
  for (int i = 0; i < kBlock; ++i) {
    const bool keep = decide(random, i, threshold) && (kWhole || i < exist);
    byte |= jump<kRelu>(&pack->value[i], keep, factor) ? 1u << i : 0u;
  }
  return static_cast<uint8_t>(byte);
}

template <typename T>
__device__ __forceinline__ typename Element<T>::Compute factor_of(const Stats& stats) {
  return static_cast<typename Element<T>::Compute>(stats.scale);
}

template <typename T, bool kAligned, bool kRelu>
__global__ void __launch_bounds__(kThreads)
    apply_kernel(const T* x, T* y, uint8_t* keep_bits, const Stats* stats, const uint64_t* seed_pointer, int64_t n) {
  const uint64_t seed = *seed_pointer;
  const uint32_t threshold = threshold_of(stats->p_prime);
  const auto factor = factor_of<T>(*stats);
  const int64_t whole = n / kBlock, packs = (n + kBlock - 1) / kBlock;
  constexpr int kTurn = kThreads * kPacks;
  int64_t index = packs - 1 - (int64_t{blockIdx.x} * kTurn + threadIdx.x);
  for (; index >= 0; index -= int64_t{gridDim.x} * kTurn) {
    if (kAligned && index < whole && index >= (kPacks - 1) * kThreads) {
      Pack<T> pack[kPacks];
#pragma unroll
      for (int k = 0; k < kPacks; ++k) pack[k] = load_whole(x, index - k * kThreads);
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
        const int64_t at = index - k * kThreads;
        const Philox random = philox(seed, static_cast<uint64_t>(at), Stream::kKeep);
        keep_bits[at] = jump_pack<kRelu, true>(&pack[k], random, threshold, factor, kBlock);
        store_whole(y, at, pack[k]);
      }
    } else {
#pragma unroll 1
      for (int64_t at = index; at >= 0 && at > index - kTurn; at -= kThreads) {
        Pack<T> pack = load_any(x, at, n);
        const Philox random = philox(seed, static_cast<uint64_t>(at), Stream::kKeep);
        keep_bits[at] = jump_pack<kRelu, false>(&pack, random, threshold, factor, n - at * kBlock);
        store_any(y, at, n, pack);
      }
    }
  }
}

// Where an element lies: dividing is dear, so it is done once, and steps are added.
struct Place {
  int64_t row, column;

  __device__ __forceinline__ static Place of(int64_t element, int64_t length) {
    return {element / length, element % length};
  }
  __device__ __forceinline__ void next(int64_t length) {
    if (++column == length) *this = {row + 1, 0};
  }
  __device__ __forceinline__ void go_back(const Place& step, int64_t length) {
    row -= step.row;
    column -= step.column;
    if (column < 0) *this = {row - 1, column + length};
  }
};

template <typename T, bool kAligned, bool kRelu>
__global__ void __launch_bounds__(kThreads) apply_rows_kernel(const T* x, T* y, uint8_t* keep_bits, const Stats* stats,
                                                              const uint64_t* seed_pointer, int64_t n, int64_t length) {
  const uint64_t seed = *seed_pointer;
  const int64_t packs = (n + kBlock - 1) / kBlock, step = int64_t{gridDim.x} * kThreads;
  int64_t index = packs - 1 - (int64_t{blockIdx.x} * kThreads + threadIdx.x);
  if (index < 0) return;
  const Place back = Place::of(step * kBlock, length);
  for (Place place = Place::of(index * kBlock, length); index >= 0; index -= step, place.go_back(back, length)) {
    const Philox random = philox(seed, static_cast<uint64_t>(index), Stream::kKeep);
    if (place.column + kBlock <= length) {
      const Stats& own = stats[place.row];
      Pack<T> pack = kAligned ? load_whole(x, index) : load_any(x, index, n);
      keep_bits[index] = jump_pack<kRelu, true>(&pack, random, threshold_of(own.p_prime), factor_of<T>(own), kBlock);
      kAligned ? store_whole(y, index, pack) : store_any(y, index, n, pack);
    } else {
      Pack<T> pack = load_any(x, index, n);
      uint32_t byte = 0;
      Place at = place;
#pragma unroll
      for (int i = 0; i < kBlock; ++i) {
        if (index * kBlock + i < n) {
          const Stats& own = stats[at.row];
          const bool keep = decide(random, i, threshold_of(own.p_prime));
          byte |= jump<kRelu>(&pack.value[i], keep, factor_of<T>(own)) ? 1u << i : 0u;
          at.next(length);
        }
      }
      keep_bits[index] = static_cast<uint8_t>(byte);
      store_any(y, index, n, pack);
    }
  }
}

template <typename T>
__device__ __forceinline__ void scale_pack(Pack<T>* pack, uint32_t keep, typename Element<T>::Compute factor) {
#pragma unroll
  for (int i = 0; i < kBlock; ++i) jump<false>(&pack->value[i], keep >> i & 1, factor);
}

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* dy, const uint8_t* keep_bits, const Stats* stats, T* dx, int64_t n) {
  const auto factor = factor_of<T>(*stats);
  const int64_t whole = n / kBlock, packs = (n + kBlock - 1) / kBlock;
  constexpr int kTurn = kThreads * kPacks;
  int64_t index = int64_t{blockIdx.x} * kTurn + threadIdx.x;
  for (; index < packs; index += int64_t{gridDim.x} * kTurn) {
    if (kAligned && index + (kPacks - 1) * kThreads < whole) {
      Pack<T> pack[kPacks];
      uint32_t keep[kPacks];
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
        pack[k] = load_whole(dy, index + k * kThreads);
        keep[k] = keep_bits[index + k * kThreads];
      }
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
        scale_pack(&pack[k], keep[k], factor);
        store_whole(dx, index + k * kThreads, pack[k]);
      }
    } else {
#pragma unroll 1
      for (int64_t at = index; at < packs && at < index + kTurn; at += kThreads) {
        Pack<T> pack = load_any(dy, at, n);
        scale_pack(&pack, keep_bits[at], factor);
        store_any(dx, at, n, pack);
      }
    }
  }
}

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    backward_rows_kernel(const T* dy, const uint8_t* keep_bits, const Stats* stats, T* dx, int64_t n, int64_t length) {
  const int64_t packs = (n + kBlock - 1) / kBlock, step = int64_t{gridDim.x} * kThreads;
  int64_t index = packs - 1 - (int64_t{blockIdx.x} * kThreads + threadIdx.x);
  if (index < 0) return;
  const Place back = Place::of(step * kBlock, length);
  for (Place place = Place::of(index * kBlock, length); index >= 0; index -= step, place.go_back(back, length)) {
    const uint32_t keep = keep_bits[index];
    if (place.column + kBlock <= length) {
      Pack<T> pack = kAligned ? load_whole(dy, index) : load_any(dy, index, n);
      scale_pack(&pack, keep, factor_of<T>(stats[place.row]));
      kAligned ? store_whole(dx, index, pack) : store_any(dx, index, n, pack);
    } else {
      Pack<T> pack = load_any(dy, index, n);
      Place at = place;
#pragma unroll
      for (int i = 0; i < kBlock; ++i) {
        if (index * kBlock + i < n) {
          jump<false>(&pack.value[i], keep >> i & 1, factor_of<T>(stats[at.row]));
          at.next(length);
        }
      }
      store_any(dx, index, n, pack);
    }
  }
}

}  // namespace
}  // namespace jumpout
