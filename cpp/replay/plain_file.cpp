#include "plain_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace jumpout::replay {

PlainFile::PlainFile(const std::filesystem::path& file) {
  // Without waiting, in case the path has become a pipe since somebody looked; a regular file takes no notice.
  handle_ = ::open(file.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  struct stat found{};
  if (handle_ >= 0 && (::fstat(handle_, &found) != 0 || !S_ISREG(found.st_mode))) {
    ::close(handle_);
    handle_ = -1;
  }
}

PlainFile::~PlainFile() {
  if (handle_ >= 0) ::close(handle_);
}

std::optional<size_t> PlainFile::read(char* bytes, size_t count) {
  size_t done = 0;
  while (done < count) {
    const ssize_t more = ::read(handle_, bytes + done, count - done);
    if (more < 0 && errno == EINTR) continue;
    if (more < 0) return std::nullopt;
    if (more == 0) break;
    done += static_cast<size_t>(more);
  }
  return done;
}

std::optional<std::string> read_plain(const std::filesystem::path& file) {
  constexpr size_t kPart = 1 << 20;
  PlainFile source(file);
  if (!source.is_open()) return std::nullopt;
  std::string content;
  for (size_t filled = 0;;) {
    content.resize(filled + kPart);
    const std::optional<size_t> more = source.read(content.data() + filled, kPart);
    if (!more) return std::nullopt;
    filled += *more;
    if (*more < kPart) {
      content.resize(filled);
      return content;
    }
  }
}

}  // namespace jumpout::replay
