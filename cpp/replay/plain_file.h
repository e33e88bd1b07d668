// Reads regular files and nothing else: a pipe would wait for a writer, a device may never end.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

namespace jumpout::replay {

class PlainFile {
 public:
  // Opens the file, following links.
  explicit PlainFile(const std::filesystem::path& file);
  ~PlainFile();
  PlainFile(const PlainFile&) = delete;
  PlainFile& operator=(const PlainFile&) = delete;

  // Whether it is a regular file that can be read.
  bool is_open() const { return handle_ >= 0; }

  // Reads the next bytes and returns how many, fewer than asked for only at the end; nothing if the disk fails.
  std::optional<size_t> read(char* bytes, size_t count);

 private:
  int handle_ = -1;
};

// The content of a regular file; nothing if it is none or cannot be read.
std::optional<std::string> read_plain(const std::filesystem::path& file);

}  // namespace jumpout::replay
