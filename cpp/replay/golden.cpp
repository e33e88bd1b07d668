#include "golden.h"

#include <algorithm>
#include <optional>

#include "errors.h"
#include "plain_file.h"
#include "platform.h"
#include "sha256.h"
#include "tensor_proto.h"
#include "wire.h"

namespace jumpout::replay {
namespace {

namespace fs = std::filesystem;

constexpr char kPrefix[] = "test_data_set_";

bool starts_with(const std::string& text, const std::string& start) { return text.rfind(start, 0) == 0; }

std::vector<fs::path> find_sets(const fs::path& folder) {
  if (!fs::is_directory(folder)) throw UsageError(shown(folder) + ": there is no such folder");
  if (starts_with(shown(fs::canonical(folder).filename()), kPrefix)) return {folder};
  std::vector<fs::path> found;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (starts_with(shown(entry.path().filename()), kPrefix) && entry.is_directory()) found.push_back(entry.path());
  }
  if (found.empty()) {
    throw UsageError(shown(folder) + ": there is no golden data, no folder " + kPrefix +
                     "0; export the model with --golden, or name the folder with --data");
  }
  std::sort(found.begin(), found.end());
  return found;
}

Tensor read_tensor(const fs::path& file, std::string& digest) {
  if (!fs::exists(file)) throw UsageError(shown(file) + ": there is no such file");
  const std::optional<std::string> content = read_plain(file);
  if (!content || content->empty()) throw UsageError(shown(file) + ": it is empty or cannot be read");
  Sha256 hash;
  hash.add(*content);
  digest = hash.hex();
  try {
    return parse_tensor(*content);
  } catch (const FormatError& error) {
    throw UsageError(shown(file) + ": " + one_line(error.what()));
  }
}

std::vector<Tensor> read_all(GoldenSet& set, const std::string& kind, const std::vector<Signature>& wanted) {
  std::vector<Tensor> tensors;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const fs::path file = set.folder / (kind + "_" + std::to_string(i) + ".pb");
    tensors.push_back(read_tensor(file, set.digests[shown(file.filename())]));
    const std::string problem = misfit(tensors.back(), wanted[i]);
    if (!problem.empty()) throw UsageError(shown(file) + ": " + problem);
  }
  const fs::path beyond = set.folder / (kind + "_" + std::to_string(wanted.size()) + ".pb");
  if (fs::exists(beyond)) {
    throw UsageError(shown(beyond) + ": the model has only " + std::to_string(wanted.size()) + " " + kind + "s");
  }
  return tensors;
}

}  // namespace

std::vector<GoldenSet> read_golden(const fs::path& folder, const std::vector<Signature>& inputs,
                                   const std::vector<Signature>& outputs) {
  std::vector<GoldenSet> sets;
  for (const fs::path& found : find_sets(folder)) {
    GoldenSet set{found, shown(fs::canonical(found).filename()), {}, {}, {}};
    set.inputs = read_all(set, "input", inputs);
    set.outputs = read_all(set, "output", outputs);
    sets.push_back(std::move(set));
  }
  return sets;
}

}  // namespace jumpout::replay
