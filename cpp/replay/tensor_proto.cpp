#include "tensor_proto.h"

#include <cstring>
#include <optional>

#include "wire.h"

// The values are copied as they are in the file, which is little-endian.
#ifdef __BYTE_ORDER__  // which not all compilers say, for systems that are little-endian everywhere
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "needs a little-endian machine");
#endif

namespace jumpout::replay {
namespace {

// Field numbers of onnx.TensorProto.
enum : uint32_t {
  kDims = 1,
  kDataType = 2,
  kFloatData = 4,
  kInt32Data = 5,
  kInt64Data = 7,
  kName = 8,
  kRawData = 9,
  kDoubleData = 10,
  kUint64Data = 11,
  kDocString = 12,
  kDataLocation = 14,
};

struct Parts {
  std::vector<uint64_t> dims, int32s, int64s, uint64s;
  std::string fixed32, fixed64;  // float_data and double_data, as bytes
  std::optional<std::string_view> raw;
  int64_t dtype = 0;
  std::string name;
};

void expect(const Field& field, WireType type) {
  if (field.type != type) throw FormatError("not a TensorProto: field " + std::to_string(field.number) + " is odd");
}

// A repeated number stands in one packed field or in a field of its own each.
void append_varints(WireReader& reader, const Field& field, std::vector<uint64_t>& values) {
  if (field.type == WireType::kVarint) {
    values.push_back(reader.varint());
    return;
  }
  expect(field, WireType::kBytes);
  for (WireReader packed(reader.bytes()); !packed.done();) values.push_back(packed.varint());
}

void append_fixed(WireReader& reader, const Field& field, WireType single, std::string& values) {
  if (field.type == single) {
    values += single == WireType::kFixed32 ? reader.fixed32() : reader.fixed64();
    return;
  }
  expect(field, WireType::kBytes);
  values += reader.bytes();
}

Parts split(std::string_view data) {
  Parts parts;
  for (WireReader reader(data); !reader.done();) {
    const Field field = reader.field();
    switch (field.number) {
      case kDims:
        append_varints(reader, field, parts.dims);
        break;
      case kDataType:
        expect(field, WireType::kVarint);
        parts.dtype = static_cast<int64_t>(reader.varint());
        break;
      case kFloatData:
        append_fixed(reader, field, WireType::kFixed32, parts.fixed32);
        break;
      case kDoubleData:
        append_fixed(reader, field, WireType::kFixed64, parts.fixed64);
        break;
      case kInt32Data:
        append_varints(reader, field, parts.int32s);
        break;
      case kInt64Data:
        append_varints(reader, field, parts.int64s);
        break;
      case kUint64Data:
        append_varints(reader, field, parts.uint64s);
        break;
      case kName:
        expect(field, WireType::kBytes);
        parts.name = reader.bytes();
        break;
      case kDocString:
        expect(field, WireType::kBytes);
        reader.bytes();
        break;
      case kRawData:
        expect(field, WireType::kBytes);
        parts.raw = reader.bytes();
        break;
      case kDataLocation:
        expect(field, WireType::kVarint);
        if (reader.varint() != 0) throw FormatError("its values lie in another file, which is not supported");
        break;
      default:
        throw FormatError("not a TensorProto: it has a field " + std::to_string(field.number));
    }
  }
  return parts;
}

// Values of `Stored` bits that the file holds as 64-bit numbers, negative ones sign-extended.
template <typename Stored>
std::vector<uint8_t> narrowed(const std::vector<uint64_t>& values) {
  std::vector<uint8_t> bytes(values.size() * sizeof(Stored));
  for (size_t i = 0; i < values.size(); ++i) {
    const Stored value = static_cast<Stored>(values[i]);
    if (static_cast<uint64_t>(value) != values[i]) throw FormatError("a value does not fit its dtype");
    std::memcpy(bytes.data() + i * sizeof(Stored), &value, sizeof(Stored));
  }
  return bytes;
}

std::vector<uint8_t> typed_data(const Parts& parts, DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return {parts.fixed32.begin(), parts.fixed32.end()};
    case DType::kFloat64:
      return {parts.fixed64.begin(), parts.fixed64.end()};
    case DType::kInt64:
      return narrowed<int64_t>(parts.int64s);
    case DType::kUint64:
      return narrowed<uint64_t>(parts.uint64s);
    case DType::kUint32:
      return narrowed<uint32_t>(parts.uint64s);
    case DType::kInt32:
      return narrowed<int32_t>(parts.int32s);
    case DType::kInt16:
      return narrowed<int16_t>(parts.int32s);
    case DType::kInt8:
      return narrowed<int8_t>(parts.int32s);
    case DType::kUint8:
    case DType::kBool:
      return narrowed<uint8_t>(parts.int32s);
    default:  // uint16, and the bits of float16 and bfloat16
      return narrowed<uint16_t>(parts.int32s);
  }
}

}  // namespace

Tensor parse_tensor(std::string_view data) {
  Parts parts = split(data);
  if (!is_known(parts.dtype)) {
    throw FormatError("not a TensorProto with numbers: its data type is " + std::to_string(parts.dtype));
  }
  Tensor tensor{parts.name, static_cast<DType>(parts.dtype), {parts.dims.begin(), parts.dims.end()}, {}};
  const int kinds = parts.raw.has_value() + !parts.fixed32.empty() + !parts.fixed64.empty() + !parts.int32s.empty() +
                    !parts.int64s.empty() + !parts.uint64s.empty();
  if (kinds > 1) throw FormatError("it holds its values twice");
  if (parts.raw) {
    tensor.bytes.assign(parts.raw->begin(), parts.raw->end());
  } else {
    tensor.bytes = typed_data(parts, tensor.dtype);
  }
  const size_t expected = element_count(tensor.shape) * element_size(tensor.dtype);
  if (tensor.bytes.size() != expected) {
    throw FormatError("it holds " + std::to_string(tensor.bytes.size()) + " bytes of values, " +
                      describe(tensor.dtype, tensor.shape) + " has " + std::to_string(expected));
  }
  if (tensor.dtype == DType::kBool) {
    for (const uint8_t byte : tensor.bytes) {
      if (byte > 1) throw FormatError("a bool is neither 0 nor 1");
    }
  }
  return tensor;
}

}  // namespace jumpout::replay
