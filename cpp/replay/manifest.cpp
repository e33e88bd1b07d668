#include "manifest.h"

#include <optional>

#include "errors.h"
#include "json.h"
#include "plain_file.h"
#include "platform.h"
#include "sha256.h"
#include "wire.h"

namespace jumpout::replay {
namespace {

namespace fs = std::filesystem;

// VERSION in manifest.py.
constexpr char kVersion[] = "1";
constexpr char kCheck[] = "manifest";
constexpr uintmax_t kMostBytes = 1 << 20;
constexpr size_t kDigits = 64;

std::string digest(const Json& value) {
  const bool is_one = value.kind == Json::Kind::kText && value.text.size() == kDigits &&
                      value.text.find_first_not_of("0123456789abcdef") == std::string::npos;
  if (!is_one) throw FormatError("a digest in it is no sha256");
  return value.text;
}

std::map<std::string, std::string> digests(const Json& document, const std::string& key) {
  if (document[key].kind != Json::Kind::kObject) throw FormatError("its `" + key + "` is no table of digests");
  std::map<std::string, std::string> result;
  for (const auto& [name, value] : document[key].members) result[name] = digest(value);
  return result;
}

}  // namespace

Manifest::Manifest(const fs::path& model) : place_(model) {
  place_.replace_extension(".manifest.json");
  if (!fs::exists(fs::symlink_status(place_))) {
    throw CheckFailed(shown(place_) +
                          ": there is no manifest, so nobody knows whether this is the file that was proven; export it "
                          "anew, or pass --without-manifest",
                      kCheck);
  }
  try {
    std::error_code error;
    if (fs::file_size(place_, error) > kMostBytes && !error) throw FormatError("it is larger than a manifest is");
    const std::optional<std::string> content = read_plain(place_);
    if (!content) throw FormatError("it is no file that can be read");
    const Json document = parse_json(*content);
    if (document["kind"].text != "manifest") throw FormatError("it is no manifest");
    if (document["manifest_version"].text != kVersion) {
      throw FormatError("its version is " + document["manifest_version"].text + ", this program reads " + kVersion);
    }
    model_ = digest(document["model"]);
    data_ = digests(document, "data");
    golden_ = digests(document, "golden");
  } catch (const FormatError& error) {
    throw CheckFailed(shown(place_) + ": the manifest cannot be read: " + one_line(error.what()), kCheck);
  }
}

void Manifest::check_model(const fs::path& model, const std::set<std::string>& data) const {
  check(model, {{shown(model.filename()), model_}}, sha256_of(model));
  std::set<std::string> used;
  for (const std::string& name : data) {
    const fs::path file = model.parent_path() / path_of(name);
    check(file, data_, sha256_of(file));
    used.insert(shown(file.filename()));
  }
  for (const auto& [name, digest] : data_) {
    if (used.count(name)) continue;
    throw CheckFailed(shown(place_) + ": it names weights in " + one_line(name) + ", which the model does not use",
                      kCheck);
  }
}

void Manifest::check_golden(const GoldenSet& set) const {
  for (const auto& [name, found] : set.digests) check(set.folder / name, golden_, found);
}

void Manifest::check(const fs::path& file, const std::map<std::string, std::string>& wanted,
                     const std::string& found) const {
  const auto entry = wanted.find(shown(file.filename()));
  if (entry == wanted.end()) {
    throw CheckFailed(shown(file) + ": it is not in the manifest " + shown(place_.filename()), kCheck);
  }
  if (entry->second != found) {
    throw CheckFailed(shown(file) + ": it is not the file that was proven: its sha256 is not that in the manifest " +
                          shown(place_.filename()),
                      kCheck);
  }
}

}  // namespace jumpout::replay
