// What depends on the operating system: platform_posix.cpp and platform_windows.cpp, which has not run anywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace jumpout::replay {

// Opens a regular file to read, following links, and nothing else: a pipe would wait for a writer, a device may never
// end. Returns its handle, negative if it is none or cannot be opened.
int open_plain(const std::filesystem::path& file);

// Reads some of the next bytes and returns how many: 0 at the end, negative if the disk fails.
int64_t read_some(int handle, char* bytes, size_t count);

void close_plain(int handle);

// Makes a folder in the temporary one that nobody else knows; nothing if that is not possible.
std::optional<std::filesystem::path> make_private_folder();

// What this process holds in memory, in MiB; nothing where it cannot be told.
std::optional<double> resident_mib();

// Processor and system, such as `x86_64, Linux`.
std::string machine();

// The words of a command line without the program's name, as `shown` writes them.
std::vector<std::string> arguments(int argc, char** argv);

// A path for a person or a report, in UTF-8 if the system has one encoding of names, else its bytes.
std::string shown(const std::filesystem::path& path);

// The path that was typed, of `shown`.
std::filesystem::path path_of(const std::string& text);

}  // namespace jumpout::replay
