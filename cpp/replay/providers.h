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

// Where the nodes ran that were executed.
struct Placement {
  std::map<std::string, int> nodes;   // how many, by execution provider
  size_t shapes = 0;                  // of those, on the CPU on purpose
  size_t elsewhere = 0;               // of those, on another provider than the one asked for without such a reason
  std::vector<std::string> problems;  // the nodes elsewhere, or that there is none on a GPU
};

Placement place(const std::vector<ExecutedNode>& nodes, Provider provider);

}  // namespace replay
