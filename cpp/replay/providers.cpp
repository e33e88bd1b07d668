#include "providers.h"

#include <stdlib.h>

#include <fstream>

#include "errors.h"

namespace replay {
namespace {

namespace fs = std::filesystem;

constexpr char kNode[] = "{\"cat\" : \"Node\"";
constexpr char kProvider[] = "\"provider\" : \"";

}  // namespace

ProfileFolder::ProfileFolder() {
  std::error_code missing;
  const fs::path parent = fs::temp_directory_path(missing);
  if (missing) throw NotVerifiable("TMPDIR: there is no such folder, for the profile");
  std::string name = (parent / "jumpout-replay-XXXXXX").string();
  if (!mkdtemp(name.data())) throw NotVerifiable(name + ": cannot make a folder there for the profile");
  folder_ = name;
}

ProfileFolder::~ProfileFolder() {
  std::error_code ignored;  // a folder left in the temporary one must not hide the verdict
  fs::remove_all(folder_, ignored);
}

std::map<std::string, int> nodes_by_provider(const fs::path& profile) {
  std::map<std::string, int> counts;
  std::ifstream stream(profile);
  for (std::string line; std::getline(stream, line);) {
    if (line.rfind(kNode, 0) != 0) continue;
    const size_t start = line.rfind(kProvider), name = start + sizeof(kProvider) - 1;
    ++counts[start == std::string::npos ? "an unknown provider" : line.substr(name, line.find('"', name) - name)];
  }
  return counts;
}

std::vector<std::string> misplaced(const std::map<std::string, int>& nodes, Provider provider) {
  std::vector<std::string> problems;
  for (const auto& [name, count] : nodes) {
    if (name != provider_name(provider)) problems.push_back(std::to_string(count) + " nodes ran on " + one_line(name));
  }
  if (nodes.empty() && provider == Provider::kCuda) problems.push_back("no node ran on the GPU");
  return problems;
}

}  // namespace replay
