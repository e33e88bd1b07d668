#include "command.h"

#include "platform.h"
#include "program.h"
#include "report.h"

namespace jumpout::replay {
namespace {

std::string usage() {
  return "usage: jumpout-replay MODEL.onnx [--data DIR] [--provider " + provider_options("|") +
         R"(] [--threads N] [--repeat N] [--dump DIR]
                      [--without-manifest] [--json]

Runs an exported model on its golden inputs in ONNX Runtime and compares with its golden outputs, under the tolerance
in the model's metadata. Model, weights and golden data must be those that the manifest beside the model names. Options
may be written --data=DIR.

  --data DIR       a folder test_data_set_*, or one that holds such folders; default: where the model is
  --provider NAME  )" +
         fallback().option + " (default)" + other_providers() + R"(
  --threads N      threads for one request, default 1
  --repeat N       timed runs, default 20
  --dump DIR       write the outputs there as raw bytes, DIR/test_data_set_0/output_0.raw
  --without-manifest
                   take files that no manifest describes, or other ones
  --json           print the report as JSON, docs/report.schema.json, whatever the exit code
  --version        print the versions of this program and of ONNX Runtime
  -h, --help       print this

exit codes: 0 passed, 1 a check failed, 2 wrong usage or an unusable file, 3 could not be verified here
)";
}

Verification run(const Arguments& arguments, const Setup& setup) {
  Options options(setup);
  options.dump = path_of(arguments.text("--dump", ""));
  options.repeat = arguments.number("--repeat", options.repeat, 1000000);
  return verification_of(options, replay(options));
}

}  // namespace

int run_command(const std::vector<std::string>& words, std::ostream& out, std::ostream& err) {
  return run_program({"jumpout-replay", usage(), {"--provider", "--threads", "--repeat", "--dump"}, {}, run}, words,
                     out, err);
}

}  // namespace jumpout::replay
