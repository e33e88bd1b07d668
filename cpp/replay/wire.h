// Reads protobuf's wire format: a sequence of (field number, wire type, value). Never past the end, whatever the bytes.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

namespace jumpout::replay {

struct FormatError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class WireType : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

struct Field {
  uint32_t number;
  WireType type;
};

class WireReader {
 public:
  explicit WireReader(std::string_view data) : rest_(data) {}

  bool done() const { return rest_.empty(); }

  Field field() {
    const uint64_t tag = varint();
    const uint64_t type = tag & 7, number = tag >> 3;
    if (number == 0 || number > kLargestField) throw FormatError("not a protobuf message");
    if (type != 0 && type != 1 && type != 2 && type != 5) throw FormatError("not a protobuf message");
    return {static_cast<uint32_t>(number), static_cast<WireType>(type)};
  }

  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const uint64_t byte = static_cast<unsigned char>(take(1)[0]);
      if (shift == 63 && byte > 1) throw FormatError("a number is longer than 64 bits");
      value |= (byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    throw FormatError("a number is longer than 64 bits");
  }

  std::string_view fixed32() { return take(4); }
  std::string_view fixed64() { return take(8); }
  std::string_view bytes() { return take(varint()); }

 private:
  static constexpr uint64_t kLargestField = (1u << 29) - 1;

  std::string_view take(uint64_t count) {
    if (count > rest_.size()) throw FormatError("the file is truncated");
    const std::string_view taken = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return taken;
  }

  std::string_view rest_;
};

}  // namespace jumpout::replay
