#include "command.h"

#include <algorithm>
#include <ostream>

#include "errors.h"
#include "options.h"
#include "replay.h"
#include "report.h"

namespace jumpout::replay {

int run_command(const std::vector<std::string>& words, std::ostream& out, std::ostream& err) {
  Options options;
  try {
    return with_errors([&] {
      if (std::find(words.begin(), words.end(), "--help") != words.end()) {
        out << usage();
        return kPassed;
      }
      options = parse_options(words);
      const Report report = replay(options);
      const Verification found = verification_of(options, [&] { return report; });
      out << (options.json ? found.json : found.text);
      return found ? kPassed : static_cast<int>(Problem::kFailed);
    });
  } catch (const Error& error) {
    // A file that cannot be used has no report, as in Python.
    if (options.json && error.problem() != Problem::kUnusable) out << to_json(options, error);
    err << "jumpout-replay: " << error.what() << "\n";
    return exit_code(error);
  }
}

}  // namespace jumpout::replay
