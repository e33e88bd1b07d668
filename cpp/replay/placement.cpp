#include "placement.h"

#include <fstream>
#include <optional>

#include "errors.h"
#include "platform.h"
#include "shapes.h"

namespace jumpout::replay {
namespace {

namespace fs = std::filesystem;

constexpr char kNode[] = "{\"cat\" : \"Node\"";
constexpr size_t kMostNamed = 8;

// The string behind `"KEY" :`, empty where there is none. An escape of anything but a quote or a backslash stays in it.
std::string text(const std::string& line, const std::string& key) {
  const std::string start = '"' + key + "\" :";
  const size_t found = line.find(start);
  if (found == std::string::npos) return "";
  size_t at = line.find_first_not_of(' ', found + start.size());
  if (at == std::string::npos || line[at] != '"') return "";
  std::string value;
  for (++at; at < line.size() && line[at] != '"'; ++at) {
    if (line[at] == '\\' && at + 1 < line.size() && (line[at + 1] == '"' || line[at + 1] == '\\')) ++at;
    value += line[at];
  }
  return at < line.size() ? value : "";
}

// Whether a node of the file that is surely this one reads shapes only, and no other that it may be does more.
bool reads_shapes(const ShapeNodes& shapes, const ExecutedNode& node) {
  const bool unnamed = node.name == node.operation + "_" + node.index && shapes.any("", node.operation);
  if (!unnamed) return shapes.all(node.name, node.operation);
  return shapes.all("", node.operation) &&
         (!shapes.any(node.name, node.operation) || shapes.all(node.name, node.operation));
}

}  // namespace

ProfileFolder::ProfileFolder() : folder_(make_private_folder().value_or(fs::path())) {}

ProfileFolder::~ProfileFolder() {
  if (folder_.empty()) return;
  std::error_code ignored;  // a folder left in the temporary one must not hide the verdict
  fs::remove_all(folder_, ignored);
}

std::vector<ExecutedNode> executed_nodes(const fs::path& profile) {
  constexpr char kSuffix[] = "_kernel_time";
  std::vector<ExecutedNode> nodes;
  std::ifstream stream(profile);
  for (std::string line; std::getline(stream, line);) {
    if (line.rfind(kNode, 0) != 0) continue;
    ExecutedNode node{text(line, "name"), text(line, "op_name"), text(line, "provider"), text(line, "node_index")};
    if (const size_t suffix = node.name.rfind(kSuffix); suffix != std::string::npos) node.name.resize(suffix);
    if (node.provider.empty()) node.provider = "an unknown provider";
    nodes.push_back(std::move(node));
  }
  return nodes;
}

Placement place(const std::vector<ExecutedNode>& nodes, const Provider& provider, const fs::path& model) {
  Placement placement;
  std::optional<ShapeNodes> shapes;
  size_t there = 0;
  for (const ExecutedNode& node : nodes) {
    ++placement.nodes[node.provider];
    if (node.provider == provider.name) {
      ++there;
      continue;
    }
    const bool on_cpu = node.provider == fallback().name;
    if (on_cpu && !shapes) shapes = read_shape_nodes(model);
    if (on_cpu && reads_shapes(*shapes, node)) {
      ++placement.shapes;
    } else if (++placement.elsewhere <= kMostNamed) {
      placement.problems.push_back("node `" + one_line(node.name) + "` (" + one_line(node.operation) + ") ran on " +
                                   one_line(node.provider));
    }
  }
  if (placement.elsewhere > kMostNamed) {
    placement.problems.push_back(std::to_string(placement.elsewhere - kMostNamed) + " more nodes did too");
  }
  if (!there && !provider.is_fallback) placement.problems.push_back("no node ran on " + provider.device);
  return placement;
}

}  // namespace jumpout::replay
