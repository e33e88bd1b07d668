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

// Number of executed nodes by execution provider. The file has one event per line.
std::map<std::string, int> nodes_by_provider(const std::filesystem::path& profile);

// What is wrong with that: nodes on another provider than the one asked for, or none on a GPU.
std::vector<std::string> misplaced(const std::map<std::string, int>& nodes, Provider provider);

}  // namespace replay
