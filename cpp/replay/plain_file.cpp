#include "plain_file.h"

#include "platform.h"

namespace jumpout::replay {

PlainFile::PlainFile(const std::filesystem::path& file) : handle_(open_plain(file)) {}

PlainFile::~PlainFile() {
  if (handle_ >= 0) close_plain(handle_);
}

std::optional<size_t> PlainFile::read(char* bytes, size_t count) {
  size_t done = 0;
  while (done < count) {
    const int64_t more = read_some(handle_, bytes + done, count - done);
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
