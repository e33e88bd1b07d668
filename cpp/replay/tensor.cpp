#include "tensor.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "errors.h"
#include "wire.h"

namespace jumpout::replay {
namespace {

struct Kind {
  DType dtype;
  const char* name;
  size_t size;
  bool floating;
};

constexpr Kind kKinds[] = {
    {DType::kFloat32, "float32", 4, true}, {DType::kFloat64, "float64", 8, true},
    {DType::kFloat16, "float16", 2, true}, {DType::kBfloat16, "bfloat16", 2, true},
    {DType::kInt64, "int64", 8, false},    {DType::kInt32, "int32", 4, false},
    {DType::kInt16, "int16", 2, false},    {DType::kInt8, "int8", 1, false},
    {DType::kUint8, "uint8", 1, false},    {DType::kUint16, "uint16", 2, false},
    {DType::kUint32, "uint32", 4, false},  {DType::kUint64, "uint64", 8, false},
    {DType::kBool, "bool", 1, false},
};

const Kind* find_kind(int64_t dtype) {
  for (const Kind& kind : kKinds) {
    if (static_cast<int64_t>(kind.dtype) == dtype) return &kind;
  }
  return nullptr;
}

const Kind& kind_of(DType dtype) { return *find_kind(static_cast<int64_t>(dtype)); }

template <typename T>
T load(const Tensor& tensor, size_t index) {
  T value;
  std::memcpy(&value, tensor.bytes.data() + index * sizeof(T), sizeof(T));
  return value;
}

double from_half(uint16_t bits) {
  const int exponent = (bits >> 10) & 0x1f, fraction = bits & 0x3ff;
  double value = std::ldexp(fraction, -24);  // subnormal
  if (exponent == 0x1f) {
    value = fraction ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
  } else if (exponent) {
    value = std::ldexp(1024 + fraction, exponent - 25);
  }
  return bits & 0x8000 ? -value : value;
}

double from_bfloat16(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

}  // namespace

bool is_known(int64_t dtype) { return find_kind(dtype) != nullptr; }

size_t element_size(DType dtype) { return kind_of(dtype).size; }

bool is_floating_point(DType dtype) { return kind_of(dtype).floating; }

const char* dtype_name(DType dtype) { return kind_of(dtype).name; }

size_t element_count(const std::vector<int64_t>& shape) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max() / 8;  // bytes are counted in size_t
  int64_t count = 1;
  for (const int64_t length : shape) {
    if (length < 0) throw FormatError("a dimension is negative");
    if (length && count > kMost / length) throw FormatError("the shape has too many elements");
    count *= length;
  }
  return static_cast<size_t>(count);
}

std::string describe(DType dtype, const std::vector<int64_t>& shape) {
  std::string text = std::string(dtype_name(dtype)) + "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? "," : "") + (shape[i] < 0 ? "?" : std::to_string(shape[i]));
  return text + "]";
}

std::string misfit(const Tensor& tensor, const Signature& wanted) {
  bool fits = tensor.dtype == wanted.dtype && tensor.shape.size() == wanted.shape.size();
  for (size_t axis = 0; fits && axis < wanted.shape.size(); ++axis) {
    fits = wanted.shape[axis] < 0 || wanted.shape[axis] == tensor.shape[axis];
  }
  if (tensor.name == wanted.name && fits) return "";
  return "it holds `" + one_line(tensor.name) + "`, " + one_line(describe(tensor.dtype, tensor.shape)) +
         "; the model has `" + one_line(wanted.name) + "`, " + one_line(describe(wanted.dtype, wanted.shape));
}

double value_at(const Tensor& tensor, size_t index) {
  switch (tensor.dtype) {
    case DType::kFloat64:
      return load<double>(tensor, index);
    case DType::kFloat16:
      return from_half(load<uint16_t>(tensor, index));
    case DType::kBfloat16:
      return from_bfloat16(load<uint16_t>(tensor, index));
    default:
      return load<float>(tensor, index);
  }
}

}  // namespace jumpout::replay

namespace jumpout {

size_t Tensor::count() const { return bytes.size() / replay::element_size(dtype); }

void Tensor::expect(DType wanted) const {
  if (dtype == wanted) return;
  throw Error(Problem::kUnusable, "`" + replay::one_line(name) + "` holds " + replay::dtype_name(dtype) +
                                      ", asked for are " + replay::dtype_name(wanted));
}

const Tensor& named(const std::vector<Tensor>& tensors, const std::string& name) {
  for (const Tensor& tensor : tensors) {
    if (tensor.name == name) return tensor;
  }
  std::string known;
  for (const Tensor& tensor : tensors) known += (known.empty() ? "" : ", ") + replay::one_line(tensor.name);
  throw Error(Problem::kUnusable,
              "there is no tensor `" + replay::one_line(name) + "`; there are " + (known.empty() ? "none" : known));
}

}  // namespace jumpout
