#include "options.h"

#include <algorithm>
#include <charconv>

#include "errors.h"

namespace jumpout::replay {

namespace {

std::string in_shell(const std::string& word) {
  constexpr char kPlain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./-_";
  if (!word.empty() && word.find_first_not_of(kPlain) == std::string::npos) return word;
  std::string text = "'";
  for (const char c : word) text += c == '\'' ? std::string("'\"'\"'") : std::string(1, c);
  return text + "'";
}

}  // namespace

std::string usage() {
  std::string others;
  for (const Provider& provider : providers()) {
    if (!provider.is_fallback) others += ", or " + provider.option + ": every node must run there";
  }
  return "usage: jumpout-replay MODEL.onnx [--data DIR] [--provider " + provider_options("|") +
         R"(] [--threads N] [--repeat N] [--dump DIR] [--json]

Runs an exported model on its golden inputs in ONNX Runtime and compares with its golden outputs, under the tolerance
in the model's metadata.

  --data DIR       a folder test_data_set_*, or one that holds such folders; default: where the model is
  --provider NAME  )" +
         fallback().option + " (default)" + others + R"(
  --threads N      threads for one request, default 1
  --repeat N       timed runs, default 20
  --dump DIR       write the outputs there as raw bytes, DIR/test_data_set_0/output_0.raw
  --json           print the report as JSON, docs/report.schema.json

exit codes: 0 passed, 1 a check failed, 2 wrong usage or an unusable file, 3 could not be verified here
)";
}

Arguments::Arguments(const std::vector<std::string>& words, const std::vector<std::string>& values,
                     const std::vector<std::string>& flags) {
  const auto holds = [](const std::vector<std::string>& names, const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (holds(flags, word)) {
      given_.emplace_back(word, "");
    } else if (holds(values, word)) {
      if (i + 1 == words.size()) throw UsageError(word + " needs a value");
      given_.emplace_back(word, words[++i]);
    } else if (word.rfind("-", 0) == 0) {
      throw UsageError("there is no option " + one_line(word) + "; --help lists them");
    } else if (!model_.empty()) {
      throw UsageError("one model is allowed, got " + one_line(model_) + " and " + one_line(word));
    } else {
      model_ = word;
    }
  }
  if (model_.empty()) throw UsageError("a model is missing; --help shows the usage");
}

bool Arguments::has(const std::string& flag) const {
  return std::any_of(given_.begin(), given_.end(), [&](const auto& pair) { return pair.first == flag; });
}

std::string Arguments::text(const std::string& name, const std::string& otherwise) const {
  const auto found = std::find_if(given_.rbegin(), given_.rend(), [&](const auto& pair) { return pair.first == name; });
  return found == given_.rend() ? otherwise : found->second;
}

int Arguments::number(const std::string& name, int otherwise, int most) const {
  const std::string given = text(name, std::to_string(otherwise));
  int value = 0;
  const auto [stop, error] = std::from_chars(given.data(), given.data() + given.size(), value);
  if (error != std::errc() || stop != given.data() + given.size() || value < 1 || value > most) {
    throw UsageError(name + " must be a number in [1, " + std::to_string(most) + "], got " + one_line(given));
  }
  return value;
}

Options parse_options(const std::vector<std::string>& words) {
  const Arguments arguments(words, {"--data", "--provider", "--threads", "--repeat", "--dump"}, {"--json"});
  Options options;
  options.command = "jumpout-replay";
  for (const std::string& word : words) options.command += " " + in_shell(word);
  options.model = arguments.model();
  options.data = arguments.text("--data", "");
  options.dump = arguments.text("--dump", "");
  options.provider = parse_provider(arguments.text("--provider", fallback().option));
  options.threads = arguments.number("--threads", options.threads, 1024);
  options.repeat = arguments.number("--repeat", options.repeat, 1000000);
  options.json = arguments.has("--json");
  return options;
}

}  // namespace jumpout::replay
