#include "command.h"

#include <algorithm>
#include <new>
#include <ostream>

#include "errors.h"
#include "options.h"
#include "replay.h"
#include "report.h"

namespace replay {

int run_command(const std::vector<std::string>& words, std::ostream& out, std::ostream& err) {
  try {
    if (std::find(words.begin(), words.end(), "--help") != words.end()) {
      out << kUsage;
      return kPassed;
    }
    const Options options = parse_options(words);
    const Report report = replay(options);
    out << (options.json ? to_json(report) : to_text(report));
    return report.passed() ? kPassed : kFailed;
  } catch (const Error& error) {
    err << "jumpout-replay: " << error.what() << "\n";
    return error.code();
  } catch (const std::bad_alloc&) {
    err << "jumpout-replay: out of memory\n";
    return kNotVerifiable;
  } catch (const std::exception& error) {  // of the file system
    err << "jumpout-replay: " << one_line(error.what()) << "\n";
    return kWrongUsage;
  }
}

}  // namespace replay
