#include "proven.h"

#include <optional>
#include <string>

#include "errors.h"
#include "manifest.h"
#include "platform.h"
#include "sha256.h"

namespace jumpout::replay {

namespace fs = std::filesystem;

void check_proven(const Session& session, const Setup& setup) {
  if (!session.metadata("jumpout_export.version")) {
    throw UsageError(
        shown(setup.model) +
        ": its metadata do not say that jumpout-export has verified it; export it anew with jumpout-export");
  }
  if (!setup.without_manifest) Manifest(setup.model).check_model(setup.model, session.data_files());
  const std::optional<std::string> wanted = session.metadata("jumpout_export.data_sha256");
  if (!wanted) return;
  for (const std::string& name : session.data_files()) {
    const fs::path file = setup.model.parent_path() / path_of(name);
    if (sha256_of(file) != *wanted) {
      throw CheckFailed(
          shown(file) + ": it does not hold the weights that the model was verified with (sha256 differs)", "manifest");
    }
  }
}

std::vector<GoldenSet> golden_of(const Session& session, const Setup& setup) {
  const fs::path beside = setup.model.parent_path();
  const fs::path folder = !setup.data.empty() ? setup.data : beside.empty() ? fs::path(".") : beside;
  std::vector<GoldenSet> sets = read_golden(folder, session.inputs(), session.outputs());
  if (setup.without_manifest) return sets;
  const Manifest manifest(setup.model);
  for (const GoldenSet& set : sets) manifest.check_golden(set);
  return sets;
}

}  // namespace jumpout::replay
