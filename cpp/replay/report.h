// A report as text and as JSON.
#pragma once

#include <functional>
#include <string>

#include "errors.h"
#include "jumpout/verification.h"
#include "replay.h"

namespace jumpout::replay {

// One line for the session, one per output, one for the latency, one verdict.
std::string to_text(const Report& report);

// What `proof` found, also where it ended with an Error that is a verdict: a model that cannot run its own data.
Verification verification_of(const Options& options, const std::function<Report()>& proof);

// A `VerifyReport` of docs/report.schema.json, as the Python package prints it, for a proof that ended with an Error.
std::string to_json(const Options& options, const Error& error);

}  // namespace jumpout::replay
