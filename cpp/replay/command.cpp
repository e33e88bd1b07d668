#include "command.h"

#include <algorithm>
#include <new>
#include <ostream>

#include "errors.h"
#include "options.h"
#include "replay.h"
#include "report.h"

namespace replay {
namespace {

// A file that cannot be used has no report, as in Python.
int end(const Options& options, const Error& error, std::ostream& out, std::ostream& err) {
  if (options.json && error.code() != kWrongUsage) out << to_json(options, error);
  err << "jumpout-replay: " << error.what() << "\n";
  return error.code();
}

}  // namespace

int run_command(const std::vector<std::string>& words, std::ostream& out, std::ostream& err) {
  Options options;
  try {
    if (std::find(words.begin(), words.end(), "--help") != words.end()) {
      out << usage();
      return kPassed;
    }
    options = parse_options(words);
    const Report report = replay(options);
    out << (options.json ? to_json(options, report) : to_text(report));
    return report.passed() ? kPassed : kFailed;
  } catch (const Error& error) {
    return end(options, error, out, err);
  } catch (const std::bad_alloc&) {
    return end(options, NotVerifiable("out of memory"), out, err);
  } catch (const std::exception& error) {  // of the file system
    return end(options, UsageError(one_line(error.what())), out, err);
  }
}

}  // namespace replay
