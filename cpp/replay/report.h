// What was found, as text and as JSON.
#pragma once

#include <string>
#include <vector>

#include "errors.h"
#include "jumpout/verification.h"
#include "replay.h"

namespace jumpout::replay {

constexpr char kPass[] = "pass", kFail[] = "fail", kNotRun[] = "not_run";

// One line for the session, one per output, one for the latency, one verdict.
std::string to_text(const Report& report);

Verification verification_of(const Options& options, const Report& report);
// Of a model that cannot run its own data.
Verification verification_of(const Setup& setup, const CheckFailed& error);

// That a proof got as far as it does because the files are those of the manifest, or nobody looked.
Check manifest_check(const std::string& label, bool without_manifest);

// The check of an output, `label/worst error`; `kind` is such as `float32[8,10]`.
Check output_check(const std::string& label, const std::string& output, const std::string& kind,
                   const Comparison& found);

// The first check that keeps a report from passing, with its note; empty if there is none.
std::string first_failure(const std::vector<Check>& checks);

// A `VerifyReport` of docs/report.schema.json, as the Python package prints it.
std::string to_json(const Setup& setup, const std::vector<Check>& checks, const std::vector<std::string>& notes);

// The same for what ended with an Error: there is no verdict, unless it is that the model cannot run its own data.
std::string to_json(const Setup& setup, const Error& error);

}  // namespace jumpout::replay
