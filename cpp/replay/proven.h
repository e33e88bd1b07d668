// Whether files are those that were proven.
#pragma once

#include "replay.h"
#include "session.h"

namespace jumpout::replay {

// Throws UsageError if the metadata do not say that the exporter verified the model, CheckFailed if the model or the
// weights beside it are not those that it verified; the file is named.
void check_proven(const Session& session, const Setup& setup);

// The golden data, every set of it. Throws UsageError if it cannot be read, CheckFailed if it is not the model's.
std::vector<GoldenSet> golden_of(const Session& session, const Setup& setup);

}  // namespace jumpout::replay
