// The hash that a report identifies a file by.
#pragma once

#include <filesystem>
#include <string>

namespace jumpout::replay {

// SHA-256 of a file's content in hex, as `sha256sum` prints it; empty if it is no regular file or cannot be read.
std::string sha256_of(const std::filesystem::path& file);

}  // namespace jumpout::replay
