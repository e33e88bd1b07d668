#include <algorithm>

#include "command.h"
#include "errors.h"
#include "load.h"
#include "program.h"

namespace jumpout::replay {
namespace {

constexpr char kUsage[] =
    R"(usage: jumpout-load MODEL.onnx [--data DIR] [--clients N] [--requests N | --duration SECONDS] [--warmup N]
                    [--batches 1,2,7,16] [--without-manifest] [--json]

Sends the golden inputs to one session from several threads, in batches of several sizes. Every answer must be within
tolerance of the golden outputs and have the bits it has when nothing else runs, and memory must stay flat. Options may
be written --clients=N.

  --data DIR          a folder test_data_set_*, or one that holds such folders; default: where the model is
  --clients N         threads that send, each one request at a time, default 4
  --requests N        how many they send together, default 20000
  --duration SECONDS  send for that long instead
  --warmup N          requests before that, checked but not timed, default a tenth of --requests, or 2000
  --batches LIST      samples per request, in turn; a model with a fixed batch size takes that one
  --without-manifest  take files that no manifest describes, or other ones
  --json              print the report as JSON, docs/report.schema.json, whatever the exit code
  --version           print the versions of this program and of ONNX Runtime
  -h, --help          print this

exit codes: 0 passed, 1 a check failed, 2 wrong usage or an unusable file, 3 could not be verified here
)";

constexpr int kMostRequests = 1000000000, kMostBatch = 65536;
constexpr double kMostSeconds = 7 * 24 * 3600;

Verification run(const Arguments& arguments, const Setup& setup) {
  LoadOptions options(setup);
  options.clients = arguments.number("--clients", options.clients, 1024);
  options.requests = arguments.number("--requests", options.requests, kMostRequests);
  options.seconds = arguments.seconds("--duration", options.seconds, kMostSeconds);
  if (arguments.has("--requests") && arguments.has("--duration")) {
    throw UsageError("--requests and --duration: only one can say when to end");
  }
  const int warmup = options.seconds > 0 ? options.warmup : std::max(1, options.requests / 10);
  options.warmup = arguments.number("--warmup", warmup, kMostRequests);
  options.batches = arguments.numbers("--batches", options.batches, kMostBatch);
  options.batches_given = arguments.has("--batches");
  return verification_of(options, run_load(options));
}

}  // namespace

int run_load_command(const std::vector<std::string>& words, std::ostream& out, std::ostream& err) {
  const std::vector<std::string> values = {"--clients", "--requests", "--duration", "--warmup", "--batches"};
  return run_program({"jumpout-load", kUsage, values, {}, run}, words, out, err);
}

}  // namespace jumpout::replay
