// Whether a file is one that was proven.
#pragma once

#include <filesystem>

#include "session.h"

namespace jumpout::replay {

// Throws UsageError if the metadata do not say that the exporter verified the model, CheckFailed if the weights beside
// it are not those that it was verified with; the file is named.
void check_proven(const std::filesystem::path& model, const Session& session);

}  // namespace jumpout::replay
