// A report as text and as JSON.
#pragma once

#include <string>

#include "errors.h"
#include "replay.h"

namespace replay {

// One line for the session, one per output, one for the latency, one verdict.
std::string to_text(const Report& report);

// A `VerifyReport` of docs/report.schema.json, as the Python package prints it.
std::string to_json(const Options& options, const Report& report);

// The same for a replay that ended with CheckFailed or NotVerifiable, and why.
std::string to_json(const Options& options, const Error& error);

}  // namespace replay
