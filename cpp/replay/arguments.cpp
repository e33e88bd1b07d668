#include "arguments.h"

#include <algorithm>
#include <charconv>
#include <locale>
#include <optional>
#include <sstream>

#include "errors.h"

namespace jumpout::replay {
namespace {

bool holds(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// A whole number in [1, most]; nothing if the text is none.
std::optional<int> parse(const std::string& text, int most) {
  int value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool good = error == std::errc() && stop == text.data() + text.size() && value >= 1 && value <= most;
  return good ? std::optional<int>(value) : std::nullopt;
}

std::string quoted(const std::string& word) {
  constexpr char kPlain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./-_";
  if (!word.empty() && word.find_first_not_of(kPlain) == std::string::npos) return word;
  std::string text = "'";
  for (const char c : word) text += c == '\'' ? std::string("'\"'\"'") : std::string(1, c);
  return text + "'";
}

}  // namespace

Arguments::Arguments(const std::vector<std::string>& words, const std::vector<std::string>& values,
                     const std::vector<std::string>& flags) {
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    const size_t equals = word.find('=');
    const std::string name = word.substr(0, equals);
    if (word.rfind("-", 0) != 0) {
      if (!model_.empty()) {
        throw UsageError("one model is allowed, got " + one_line(model_) + " and " + one_line(word));
      }
      model_ = word;
    } else if (holds(flags, word)) {
      given_.emplace_back(word, "");
    } else if (holds(flags, name)) {
      throw UsageError(name + " takes no value, got " + one_line(word));
    } else if (!holds(values, name)) {
      throw UsageError("there is no option " + one_line(name) + "; --help lists them");
    } else if (equals != std::string::npos) {
      given_.emplace_back(name, word.substr(equals + 1));
    } else {
      if (i + 1 == words.size()) throw UsageError(word + " needs a value");
      given_.emplace_back(word, words[++i]);
    }
  }
  if (model_.empty()) throw UsageError("a model is missing; --help shows the usage");
}

bool Arguments::has(const std::string& name) const {
  return std::any_of(given_.begin(), given_.end(), [&](const auto& pair) { return pair.first == name; });
}

std::string Arguments::text(const std::string& name, const std::string& otherwise) const {
  const auto found = std::find_if(given_.rbegin(), given_.rend(), [&](const auto& pair) { return pair.first == name; });
  return found == given_.rend() ? otherwise : found->second;
}

int Arguments::number(const std::string& name, int otherwise, int most) const {
  if (!has(name)) return otherwise;
  const std::string given = text(name, "");
  if (const std::optional<int> value = parse(given, most)) return *value;
  throw UsageError(name + " must be a number in [1, " + std::to_string(most) + "], got " + one_line(given));
}

double Arguments::seconds(const std::string& name, double otherwise, double most) const {
  if (!has(name)) return otherwise;
  const std::string given = text(name, "");
  std::istringstream stream(given);
  stream.imbue(std::locale::classic());
  double value = 0;
  const bool plain = given.find_first_not_of("0123456789.") == std::string::npos;
  if (plain && stream >> value && stream.peek() == EOF && value > 0 && value <= most) return value;
  throw UsageError(name + " must be seconds in (0, " + std::to_string(static_cast<int64_t>(most)) + "], got " +
                   one_line(given));
}

std::vector<int> Arguments::numbers(const std::string& name, const std::vector<int>& otherwise, int most) const {
  if (!has(name)) return otherwise;
  const std::string given = text(name, "");
  std::vector<int> found;
  std::istringstream stream(given + ",");
  for (std::string word; std::getline(stream, word, ',');) {
    const std::optional<int> value = parse(word, most);
    if (!value) {
      throw UsageError(name + " must be numbers in [1, " + std::to_string(most) + "] such as 1,2,7, got " +
                       (given.empty() ? "none" : one_line(given)));
    }
    found.push_back(*value);
  }
  return found;
}

std::string in_shell(const std::string& program, const std::vector<std::string>& words) {
  std::string command = program;
  for (const std::string& word : words) command += " " + quoted(word);
  return command;
}

}  // namespace jumpout::replay
