// Looks into protobuf messages: their texts and the messages in them, by field number.
#pragma once

#include <string_view>

#include "wire.h"

namespace jumpout::replay {

// Calls visit(number, content) for every text and message in a message.
template <typename Visit>
void each(std::string_view message, const Visit& visit) {
  for (WireReader reader(message); !reader.done();) {
    const Field field = reader.field();
    switch (field.type) {
      case WireType::kVarint:
        reader.varint();
        break;
      case WireType::kFixed32:
        reader.fixed32();
        break;
      case WireType::kFixed64:
        reader.fixed64();
        break;
      case WireType::kBytes:
        visit(field.number, reader.bytes());
    }
  }
}

// The text of that number, the last one as protobuf takes it; empty where there is none.
inline std::string_view text_in(std::string_view message, uint32_t wanted) {
  std::string_view found;
  each(message, [&](uint32_t number, std::string_view content) {
    if (number == wanted) found = content;
  });
  return found;
}

// The message of that number; data() is null where there is none. Protobuf would merge the same message given twice.
inline std::string_view message_in(std::string_view message, uint32_t wanted) {
  std::string_view found;
  each(message, [&](uint32_t number, std::string_view content) {
    if (number != wanted) return;
    if (found.data()) throw FormatError("a message is given twice");
    found = content;
  });
  return found;
}

}  // namespace jumpout::replay
