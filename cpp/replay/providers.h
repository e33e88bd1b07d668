// Proves where the nodes of a model ran, from the profile that ONNX Runtime wrote while it ran them.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "session.h"

namespace replay {

// A folder for a profile that disappears with this object.
class ProfileFolder {
 public:
  ProfileFolder();
  ~ProfileFolder();
  ProfileFolder(const ProfileFolder&) = delete;
  ProfileFolder& operator=(const ProfileFolder&) = delete;
  // Start of the file's name, for SessionSettings::profile.
  std::string prefix() const { return (folder_ / "profile").string(); }

 private:
  std::filesystem::path folder_;
};

// A node that ran. ONNX Runtime keeps what computes shapes on the CPU on purpose: `only_shapes` says that the node
// reads nothing but a tensor's shape, or vectors of whole numbers.
struct ExecutedNode {
  std::string name, operation, provider;
  bool only_shapes;
};

// The executed nodes in their order. The file has one event per line.
std::vector<ExecutedNode> executed_nodes(const std::filesystem::path& profile);

// Number of executed nodes by execution provider.
std::map<std::string, int> by_provider(const std::vector<ExecutedNode>& nodes);

// What is wrong with them: nodes on another provider than the one asked for, or none on a GPU.
std::vector<std::string> misplaced(const std::vector<ExecutedNode>& nodes, Provider provider);

}  // namespace replay
