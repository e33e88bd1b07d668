#include "providers.h"

#include <stdlib.h>

#include <fstream>

#include "errors.h"

namespace replay {
namespace {

namespace fs = std::filesystem;

constexpr char kNode[] = "{\"cat\" : \"Node\"";
constexpr size_t kMostNamed = 8;

// The text between `"KEY" : ` and `end`; empty where there is none.
std::string after(const std::string& line, const std::string& key, const std::string& end) {
  const std::string start = '"' + key + "\" :";
  const size_t found = line.find(start);
  if (found == std::string::npos) return "";
  const size_t from = line.find_first_not_of(' ', found + start.size());
  const size_t to = from == std::string::npos ? from : line.find(end, from + 1);
  return to == std::string::npos ? "" : line.substr(from, to - from);
}

std::string text(const std::string& line, const std::string& key) {
  const std::string quoted = after(line, key, "\"");
  return quoted.empty() ? quoted : quoted.substr(1);
}

// Inputs as the profile writes them: [{"float":[2,64,1,1]},{"int64":[2]}].
bool reads_only_shapes(const std::string& operation, const std::string& inputs) {
  if (operation == "Shape" || operation == "Size") return true;
  size_t count = 0;
  for (size_t at = inputs.find('{'); at != std::string::npos; at = inputs.find('{', at + 1)) {
    const std::string input = inputs.substr(at, inputs.find('}', at) - at);
    const bool whole = input.rfind("{\"int", 0) == 0 || input.rfind("{\"bool", 0) == 0;
    if (!whole || input.find(',') != std::string::npos) return false;
    ++count;
  }
  return count > 0;
}

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

std::vector<ExecutedNode> executed_nodes(const fs::path& profile) {
  constexpr char kSuffix[] = "_kernel_time";
  std::vector<ExecutedNode> nodes;
  std::ifstream stream(profile);
  for (std::string line; std::getline(stream, line);) {
    if (line.rfind(kNode, 0) != 0) continue;
    ExecutedNode node{text(line, "name"), text(line, "op_name"), text(line, "provider"), false};
    if (const size_t suffix = node.name.rfind(kSuffix); suffix != std::string::npos) node.name.resize(suffix);
    if (node.provider.empty()) node.provider = "an unknown provider";
    node.only_shapes = reads_only_shapes(node.operation, after(line, "input_type_shape", "}]"));
    nodes.push_back(std::move(node));
  }
  return nodes;
}

Placement place(const std::vector<ExecutedNode>& nodes, Provider provider) {
  Placement placement;
  size_t there = 0;
  for (const ExecutedNode& node : nodes) {
    ++placement.nodes[node.provider];
    if (node.provider == provider_name(provider)) {
      ++there;
    } else if (node.only_shapes) {
      ++placement.shapes;
    } else if (++placement.elsewhere <= kMostNamed) {
      placement.problems.push_back("node `" + one_line(node.name) + "` (" + one_line(node.operation) + ") ran on " +
                                   one_line(node.provider));
    }
  }
  if (placement.elsewhere > kMostNamed) {
    placement.problems.push_back(std::to_string(placement.elsewhere - kMostNamed) + " more nodes did too");
  }
  if (!there && provider == Provider::kCuda) placement.problems.push_back("no node ran on the GPU");
  return placement;
}

}  // namespace replay
