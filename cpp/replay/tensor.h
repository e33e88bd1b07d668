// A dense tensor in memory, and what its values are.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace replay {

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

struct Tensor {
  std::string name;
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;  // little-endian, row-major, element_size(dtype) * count
  size_t count() const;
};

bool is_known(int64_t dtype);
size_t element_size(DType dtype);
bool is_floating_point(DType dtype);
const char* dtype_name(DType dtype);

// Number of elements; throws FormatError if a length is negative or the tensor could not be addressed.
size_t element_count(const std::vector<int64_t>& shape);

// `float32[8,10]`; -1 is an open length and printed as `?`.
std::string describe(DType dtype, const std::vector<int64_t>& shape);

// One element of a floating point tensor, exact in every dtype.
double value_at(const Tensor& tensor, size_t index);

}  // namespace replay
