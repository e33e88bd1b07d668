// Arrays of floating numbers for check.cpp, and their copies on the device (emulated: in memory of their own).
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "half.h"
#include "jumpout.h"

using Bytes = std::vector<uint8_t>;

inline size_t size_of(jumpout::DType dtype) {
  return dtype == jumpout::DType::kFloat64 ? 8 : dtype == jumpout::DType::kFloat32 ? 4 : 2;
}

template <typename T>
T read_as(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

inline double value_at(jumpout::DType dtype, const uint8_t* at) {
  switch (dtype) {
    case jumpout::DType::kFloat32:
      return read_as<float>(at);
    case jumpout::DType::kFloat64:
      return read_as<double>(at);
    case jumpout::DType::kBFloat16:
      return jumpout::widen(read_as<jumpout::BFloat16>(at));
    case jumpout::DType::kFloat16:
      return jumpout::widen(read_as<jumpout::Float16>(at));
  }
  return 0;
}

template <typename T>
void put_as(uint8_t* at, double value) {
  T converted;
  if constexpr (sizeof(T) == 2) {
    jumpout::narrow(static_cast<float>(value), &converted);
  } else {
    converted = static_cast<T>(value);
  }
  std::memcpy(at, &converted, sizeof converted);
}

inline void put(jumpout::DType dtype, uint8_t* at, double value) {
  switch (dtype) {
    case jumpout::DType::kFloat32:
      return put_as<float>(at, value);
    case jumpout::DType::kFloat64:
      return put_as<double>(at, value);
    case jumpout::DType::kBFloat16:
      return put_as<jumpout::BFloat16>(at, value);
    case jumpout::DType::kFloat16:
      return put_as<jumpout::Float16>(at, value);
  }
}

// Normal numbers, and one in `rarity` special: zeros, infinities, NaN, subnormals of each dtype, the largest.
inline Bytes numbers(jumpout::DType dtype, int64_t n, uint64_t rarity, std::mt19937_64& random) {
  constexpr double kSpecial[] = {0.0, -0.0, INFINITY, -INFINITY, NAN, 1e-40, -1e-40, 6e-8, 65504, 3e38, 1e-310};
  std::normal_distribution<double> normal;
  Bytes array(n * size_of(dtype));
  for (int64_t i = 0; i < n; ++i) {
    put(dtype, array.data() + i * size_of(dtype), random() % rarity ? normal(random) : kSpecial[random() % 11]);
  }
  return array;
}

inline void must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::_Exit(70);
}

// A copy on the device that begins `offset` bytes after an aligned address. Guard bytes lie on both sides; or, exact,
// nothing does behind it, so that AddressSanitizer and compute-sanitizer see an access to the first byte beyond.
class DeviceArray {
 public:
  DeviceArray(const Bytes& content, size_t offset, bool exact)
      : size_(content.size()), lead_(offset + (exact ? 0 : kGuard)), tail_(exact ? 0 : kGuard) {
    Bytes all(lead_ + size_ + tail_, kUntouched);
    if (size_ > 0) std::memcpy(all.data() + lead_, content.data(), size_);
    void* memory = nullptr;
    must(cudaMalloc(&memory, all.size()), "cudaMalloc");
    memory_ = static_cast<uint8_t*>(memory);
    if (!all.empty()) must(cudaMemcpy(memory_, all.data(), all.size(), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  ~DeviceArray() { cudaFree(memory_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  template <typename T = void>
  T* at() {
    return reinterpret_cast<T*>(memory_ + lead_);
  }

  // What it holds now, and whether the guard bytes are as they were.
  Bytes read(bool* intact) const {
    Bytes all(lead_ + size_ + tail_);
    if (!all.empty()) must(cudaMemcpy(all.data(), memory_, all.size(), cudaMemcpyDeviceToHost), "cudaMemcpy");
    for (size_t i = 0; i < all.size(); ++i) {
      if ((i < lead_ || i >= lead_ + size_) && all[i] != kUntouched) *intact = false;
    }
    return Bytes(all.begin() + lead_, all.begin() + lead_ + size_);
  }

 private:
  static constexpr size_t kGuard = 256;  // a multiple of every alignment
  static constexpr uint8_t kUntouched = 0xA5;
  size_t size_, lead_, tail_;
  uint8_t* memory_ = nullptr;
};
