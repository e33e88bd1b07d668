// RFC 8259.
#include "json.h"

#include <algorithm>
#include <cstdint>

#include "wire.h"

namespace jumpout::replay {
namespace {

constexpr int kDeepest = 16;

class Reader {
 public:
  explicit Reader(std::string_view text) : rest_(text) {}

  Json document() {
    Json value = this->value(0);
    space();
    if (!rest_.empty()) fail();
    return value;
  }

 private:
  [[noreturn]] static void fail() { throw FormatError("it is no JSON"); }

  void space() { rest_.remove_prefix(std::min(rest_.find_first_not_of(" \t\r\n"), rest_.size())); }

  char peek() {
    space();
    if (rest_.empty()) fail();
    return rest_[0];
  }

  char next() {
    if (rest_.empty()) fail();
    const char c = rest_[0];
    rest_.remove_prefix(1);
    return c;
  }

  bool take(char wanted) {
    if (peek() != wanted) return false;
    rest_.remove_prefix(1);
    return true;
  }

  Json value(int depth) {
    if (depth > kDeepest) throw FormatError("its values lie too deep in each other");
    switch (peek()) {
      case '{':
        return object(depth);
      case '[':
        return array(depth);
      case '"':
        return {Json::Kind::kText, {}, text()};
      default:
        return {Json::Kind::kOther, {}, word()};
    }
  }

  Json object(int depth) {
    Json result;
    result.kind = Json::Kind::kObject;
    next();
    if (take('}')) return result;
    do {
      if (peek() != '"') fail();
      const std::string name = text();
      if (!take(':')) fail();
      // What is said twice is read in two ways: one reader takes the first, another the last.
      if (!result.members.emplace(name, value(depth + 1)).second) throw FormatError("it says `" + name + "` twice");
    } while (take(','));
    if (!take('}')) fail();
    return result;
  }

  Json array(int depth) {
    const std::string_view start = rest_;
    next();
    if (!take(']')) {
      do {
        value(depth + 1);
      } while (take(','));
      if (!take(']')) fail();
    }
    return {Json::Kind::kOther, {}, std::string(start.substr(0, start.size() - rest_.size()))};
  }

  std::string word() {
    const size_t end = std::min(rest_.find_first_not_of("+-.0123456789abcdefghijklmnopqrstuvwxyzE"), rest_.size());
    if (end == 0) fail();
    const std::string word(rest_.substr(0, end));
    rest_.remove_prefix(end);
    return word;
  }

  std::string text() {
    std::string result;
    next();
    for (char c = next(); c != '"'; c = next()) {
      if (static_cast<unsigned char>(c) < ' ') fail();
      if (c == '\\') {
        escape(result);
      } else {
        result += c;
      }
    }
    return result;
  }

  void escape(std::string& result) {
    static constexpr std::string_view kEscapes = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
    const char c = next();
    if (const size_t found = kEscapes.find(c); found != std::string_view::npos) {
      result += kMeant[found];
    } else if (c == 'u') {
      append_utf8(result, code_point());
    } else {
      fail();
    }
  }

  uint32_t hex() {
    uint32_t unit = 0;
    for (int i = 0; i < 4; ++i) {
      const size_t digit = std::string_view("0123456789abcdef").find(static_cast<char>(next() | 0x20));
      if (digit > 15) fail();
      unit = unit << 4 | static_cast<uint32_t>(digit);
    }
    return unit;
  }

  // Beyond 16 bits it is two escapes.
  uint32_t code_point() {
    const uint32_t first = hex();
    if (first < 0xd800 || first > 0xdfff) return first;
    if (first > 0xdbff || next() != '\\' || next() != 'u') fail();
    const uint32_t second = hex();
    if (second < 0xdc00 || second > 0xdfff) fail();
    return 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
  }

  static void append_utf8(std::string& text, uint32_t code) {
    const auto more = [&](int shift) { text += static_cast<char>(0x80 | (code >> shift & 0x3f)); };
    if (code < 0x80) {
      text += static_cast<char>(code);
      return;
    }
    const int bytes = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    const uint32_t lead = bytes == 2 ? 0xc0 : bytes == 3 ? 0xe0 : 0xf0;
    text += static_cast<char>(lead | code >> 6 * (bytes - 1));
    for (int shift = 6 * (bytes - 2); shift >= 0; shift -= 6) more(shift);
  }

  std::string_view rest_;
};

}  // namespace

const Json& Json::operator[](const std::string& name) const {
  static const Json nothing;
  const auto found = members.find(name);
  return found == members.end() ? nothing : found->second;
}

Json parse_json(std::string_view text) { return Reader(text).document(); }

}  // namespace jumpout::replay
