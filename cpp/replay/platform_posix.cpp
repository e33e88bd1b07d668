#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#ifdef __APPLE__
#include <mach/mach.h>
#else
#include <fstream>
#endif

#include "platform.h"

namespace jumpout::replay {

namespace fs = std::filesystem;

int open_plain(const fs::path& file) {
  // Without waiting, in case the path has become a pipe since somebody looked; a regular file takes no notice.
  const int handle = ::open(file.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  struct stat found{};
  if (handle < 0 || (::fstat(handle, &found) == 0 && S_ISREG(found.st_mode))) return handle;
  ::close(handle);
  return -1;
}

int64_t read_some(int handle, char* bytes, size_t count) {
  ssize_t found = 0;
  do {
    found = ::read(handle, bytes, count);
  } while (found < 0 && errno == EINTR);
  return found;
}

void close_plain(int handle) { ::close(handle); }

std::optional<fs::path> make_private_folder() {
  std::error_code missing;
  const fs::path parent = fs::temp_directory_path(missing);
  if (missing) return std::nullopt;
  std::string name = (parent / "jumpout-replay-XXXXXX").string();
  return ::mkdtemp(name.data()) ? std::optional<fs::path>(name) : std::nullopt;
}

#ifdef __APPLE__
std::optional<double> resident_mib() {
  mach_task_basic_info info{};
  mach_msg_type_number_t count = MACH_TASK_BASIC_INFO_COUNT;
  if (task_info(mach_task_self(), MACH_TASK_BASIC_INFO, reinterpret_cast<task_info_t>(&info), &count) != KERN_SUCCESS) {
    return std::nullopt;
  }
  return static_cast<double>(info.resident_size) / (1 << 20);
}
#else
std::optional<double> resident_mib() {
  std::ifstream stream("/proc/self/statm");
  int64_t total = 0, resident = 0;
  if (!(stream >> total >> resident)) return std::nullopt;
  return static_cast<double>(resident) * static_cast<double>(::sysconf(_SC_PAGESIZE)) / (1 << 20);
}
#endif

std::string machine() {
  utsname found{};
  if (::uname(&found) != 0) return "";
  return std::string(found.machine) + ", " + found.sysname;
}

std::vector<std::string> arguments(int argc, char** argv) { return {argv + std::min(argc, 1), argv + argc}; }

std::string shown(const fs::path& path) { return path.string(); }

fs::path path_of(const std::string& text) { return text; }

}  // namespace jumpout::replay
