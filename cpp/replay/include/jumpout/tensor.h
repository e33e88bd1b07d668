// A dense tensor in memory, by name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "jumpout/error.h"

namespace jumpout {

// ONNX's own numbers, in files (TensorProto.DataType) as in ONNX Runtime's C API.
enum class DType : int32_t {
  kFloat32 = 1,
  kUint8 = 2,
  kInt8 = 3,
  kUint16 = 4,
  kInt16 = 5,
  kInt32 = 6,
  kInt64 = 7,
  kBool = 9,
  kFloat16 = 10,
  kFloat64 = 11,
  kUint32 = 12,
  kUint64 = 13,
  kBfloat16 = 16,
};

// The dtype that holds numbers of a C++ type. bool, float16 and bfloat16 have none: their values are in Tensor::bytes.
template <typename T>
constexpr DType dtype_of() {
  static_assert(std::is_arithmetic_v<T> && !std::is_same_v<T, bool> && sizeof(T) <= 8, "no dtype holds this type");
  if constexpr (std::is_floating_point_v<T>) return sizeof(T) == 4 ? DType::kFloat32 : DType::kFloat64;
  if constexpr (sizeof(T) == 1) return std::is_signed_v<T> ? DType::kInt8 : DType::kUint8;
  if constexpr (sizeof(T) == 2) return std::is_signed_v<T> ? DType::kInt16 : DType::kUint16;
  if constexpr (sizeof(T) == 4) return std::is_signed_v<T> ? DType::kInt32 : DType::kUint32;
  return std::is_signed_v<T> ? DType::kInt64 : DType::kUint64;
}

// Name, dtype and shape of an input or output of a model; -1 is an open length.
struct Signature {
  std::string name;
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
};

struct Tensor {
  std::string name;
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;  // little-endian, row-major

  // Copies the values, in row-major order. How many there must be is checked where the tensor is used.
  template <typename T>
  static Tensor of(std::string name, std::vector<int64_t> shape, const std::vector<T>& values) {
    Tensor tensor{std::move(name), dtype_of<T>(), std::move(shape), std::vector<uint8_t>(values.size() * sizeof(T))};
    if (!values.empty()) std::memcpy(tensor.bytes.data(), values.data(), tensor.bytes.size());
    return tensor;
  }

  // The values, in row-major order. Throws Error if they are of another dtype.
  template <typename T>
  std::vector<T> values() const {
    expect(dtype_of<T>());
    std::vector<T> result(bytes.size() / sizeof(T));
    if (!result.empty()) std::memcpy(result.data(), bytes.data(), result.size() * sizeof(T));
    return result;
  }

  // Number of values.
  size_t count() const;

  // Throws Error if the dtype is another one.
  void expect(DType wanted) const;
};

// The tensor of that name, such as an output of `Model::run`. Throws Error if there is none.
const Tensor& named(const std::vector<Tensor>& tensors, const std::string& name);

}  // namespace jumpout
