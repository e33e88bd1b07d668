// A report as text and as JSON.
#pragma once

#include <string>

#include "replay.h"

namespace replay {

// One line for the session, one per output, one for the latency, one verdict.
std::string to_text(const Report& report);

std::string to_json(const Report& report);

}  // namespace replay
