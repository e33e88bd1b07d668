// Reads JSON as far as a manifest needs it: objects, texts and what else stands there.
#pragma once

#include <map>
#include <string>
#include <string_view>

namespace jumpout::replay {

// A value: an object, a text, or anything else as it is written.
struct Json {
  enum class Kind { kObject, kText, kOther };
  Kind kind = Kind::kOther;
  std::map<std::string, Json> members;  // of an object
  std::string text;                     // of the others: the text, or a number, word or array as it is written

  // The member of that name; an empty value if there is none, or if this is no object.
  const Json& operator[](const std::string& name) const;
};

// Throws FormatError for what is no JSON, a name given twice in an object, or values that lie too deep in each other.
Json parse_json(std::string_view text);

}  // namespace jumpout::replay
