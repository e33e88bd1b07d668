#include "proven.h"

#include <optional>
#include <string>

#include "errors.h"
#include "platform.h"
#include "sha256.h"

namespace jumpout::replay {

void check_proven(const std::filesystem::path& model, const Session& session) {
  if (!session.metadata("jumpout_export.version")) {
    throw UsageError(
        shown(model) +
        ": its metadata do not say that jumpout-export has verified it; export it anew with jumpout-export");
  }
  const std::optional<std::string> wanted = session.metadata("jumpout_export.data_sha256");
  if (!wanted) return;
  for (const std::string& name : session.data_files()) {
    const std::filesystem::path file = model.parent_path() / path_of(name);
    if (sha256_of(file) != *wanted) {
      throw CheckFailed(shown(file) +
                        ": it does not hold the weights that the model was verified with (sha256 differs)");
    }
  }
}

}  // namespace jumpout::replay
