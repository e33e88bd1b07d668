// The hash that a report identifies a file by, and a manifest.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace jumpout::replay {

// SHA-256 of what is added, piece by piece.
class Sha256 {
 public:
  Sha256();
  void add(std::string_view bytes);
  // In hex, as `sha256sum` prints it; nothing can be added after it.
  std::string hex();

 private:
  std::array<uint32_t, 8> state_;
  std::array<unsigned char, 64> block_;  // the beginning of a block that is not complete
  size_t filled_ = 0;
  uint64_t bytes_ = 0;
};

// Of a file's content; empty if it is no regular file or cannot be read.
std::string sha256_of(const std::filesystem::path& file);

}  // namespace jumpout::replay
