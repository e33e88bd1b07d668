// Proves where the nodes of a model ran, from the profile that ONNX Runtime wrote while it ran them.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "session.h"

namespace jumpout::replay {

// A folder for a profile that disappears with this object; none if none can be made in the temporary folder.
class ProfileFolder {
 public:
  ProfileFolder();
  ~ProfileFolder();
  ProfileFolder(const ProfileFolder&) = delete;
  ProfileFolder& operator=(const ProfileFolder&) = delete;
  // Start of the file's name, for SessionSettings::profile; empty without a folder.
  std::filesystem::path prefix() const { return folder_.empty() ? folder_ : folder_ / "profile"; }

 private:
  std::filesystem::path folder_;
};

// A node that ran. One without a name in the file has its operator and `index` as its name.
struct ExecutedNode {
  std::string name, operation, provider, index;
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

// ONNX Runtime keeps what computes shapes on the CPU on purpose: the file `model` says which nodes these are, and is
// read only if there is one on the CPU that should not be. Throws NotVerifiable if it cannot be.
Placement place(const std::vector<ExecutedNode>& nodes, const Provider& provider, const std::filesystem::path& model);

}  // namespace jumpout::replay
