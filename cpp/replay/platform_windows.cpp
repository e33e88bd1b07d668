// Not compiled and not run: written from the documentation.
#define NOMINMAX
#define PSAPI_VERSION 2  // GetProcessMemoryInfo is in kernel32 then
#include <windows.h>
// After it.
#include <fcntl.h>
#include <io.h>
#include <psapi.h>
#include <share.h>
#include <shellapi.h>
#include <sys/stat.h>

#include <algorithm>
#include <limits>
#include <random>

#include "platform.h"

namespace jumpout::replay {

namespace fs = std::filesystem;

int open_plain(const fs::path& file) {
  int handle = -1;
  if (_wsopen_s(&handle, file.c_str(), _O_RDONLY | _O_BINARY | _O_NOINHERIT, _SH_DENYNO, 0) != 0) return -1;
  struct _stat64 found{};
  const bool is_disk = GetFileType(reinterpret_cast<HANDLE>(_get_osfhandle(handle))) == FILE_TYPE_DISK;
  if (is_disk && _fstat64(handle, &found) == 0 && (found.st_mode & _S_IFREG)) return handle;
  _close(handle);
  return -1;
}

int64_t read_some(int handle, char* bytes, size_t count) {
  constexpr size_t kMost = std::numeric_limits<int>::max();
  return _read(handle, bytes, static_cast<unsigned>(std::min(count, kMost)));
}

void close_plain(int handle) { _close(handle); }

std::optional<fs::path> make_private_folder() {
  std::error_code error;
  const fs::path parent = fs::temp_directory_path(error);
  if (error) return std::nullopt;
  std::random_device random;
  const std::string name = "jumpout-replay-" + std::to_string(GetCurrentProcessId()) + "-" + std::to_string(random());
  // The temporary folder belongs to the user, and what is in it has its permissions.
  return fs::create_directory(parent / name, error) ? std::optional<fs::path>(parent / name) : std::nullopt;
}

std::optional<double> resident_mib() {
  PROCESS_MEMORY_COUNTERS info{};
  if (!GetProcessMemoryInfo(GetCurrentProcess(), &info, sizeof(info))) return std::nullopt;
  return static_cast<double>(info.WorkingSetSize) / (1 << 20);
}

std::string machine() {
  SYSTEM_INFO info{};
  GetNativeSystemInfo(&info);
  switch (info.wProcessorArchitecture) {
    case PROCESSOR_ARCHITECTURE_AMD64:
      return "x86_64, Windows";
    case PROCESSOR_ARCHITECTURE_ARM64:
      return "arm64, Windows";
    default:
      return "Windows";
  }
}

std::vector<std::string> arguments(int, char**) {
  int count = 0;
  wchar_t** const words = CommandLineToArgvW(GetCommandLineW(), &count);
  std::vector<std::string> found;
  for (int i = 1; i < count; ++i) found.push_back(shown(fs::path(words[i])));
  LocalFree(words);
  return found;
}

std::string shown(const fs::path& path) {
  const auto text = path.u8string();  // of char8_t in C++20
  return {text.begin(), text.end()};
}

fs::path path_of(const std::string& text) {
#ifdef __cpp_char8_t
  return fs::path(std::u8string(text.begin(), text.end()));
#else
  return fs::u8path(text);
#endif
}

}  // namespace jumpout::replay
