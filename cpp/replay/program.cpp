#include "program.h"

#include <algorithm>
#include <ostream>

#include "errors.h"
#include "jumpout/model.h"
#include "platform.h"
#include "report.h"

namespace jumpout::replay {
namespace {

bool holds(const std::vector<std::string>& words, const std::string& word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

int run(const Program& program, const std::vector<std::string>& words, Setup& setup, std::ostream& out) {
  if (holds(words, "--help") || holds(words, "-h")) {
    out << program.usage;
    return kPassed;
  }
  if (holds(words, "--version")) {
    out << program.name << " " << version() << ", ONNX Runtime " << library_version() << "\n";
    return kPassed;
  }
  std::vector<std::string> values = program.values, flags = program.flags;
  values.insert(values.end(), {"--data"});
  flags.insert(flags.end(), {"--json", "--without-manifest"});
  const Arguments arguments(words, values, flags);
  setup.model = path_of(arguments.model());
  setup.data = path_of(arguments.text("--data", ""));
  setup.without_manifest = arguments.has("--without-manifest");
  setup.provider = parse_provider(arguments.text("--provider", fallback().option));
  setup.threads = arguments.number("--threads", setup.threads, 1024);
  const Verification found = program.run(arguments, setup);
  out << (arguments.has("--json") ? found.json : found.text);
  return found ? kPassed : static_cast<int>(Problem::kFailed);
}

}  // namespace

int run_program(const Program& program, const std::vector<std::string>& words, std::ostream& out, std::ostream& err) {
  Setup setup;
  setup.command = in_shell(program.name, words);
  const auto fail = [&](const Error& error) {
    err << program.name << ": " << error.what() << "\n";
    return exit_code(error);
  };
  try {
    const int code = with_errors([&] { return run(program, words, setup, out); });
    return out.flush() ? code : fail(UsageError("the result cannot be written"));
  } catch (const Error& error) {
    if (holds(words, "--json")) out << to_json(setup, error) << std::flush;
    return fail(error);
  }
}

std::string other_providers() {
  std::string text;
  for (const Provider& provider : providers()) {
    if (!provider.is_fallback) text += ", or " + provider.option + ": every node must run there";
  }
  return text;
}

}  // namespace jumpout::replay
