// Replays broken copies of an export: replay-fuzz FOLDER SCRATCH COUNT SEED
// FOLDER holds model.onnx, its manifest and test_data_set_0. Each round breaks one file in SCRATCH, which keeps it
// after a crash. Every round must end with an exit code from 0 to 3 and either a result or one line that names a file.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <random>
#include <sstream>

#include "command.h"
#include "shapes.h"
#include "wire.h"

namespace {

namespace fs = std::filesystem;

constexpr char kManifest[] = "model.manifest.json";

using Random = std::mt19937;

size_t below(Random& random, size_t bound) { return bound ? random() % bound : 0; }

std::string read(const fs::path& file) {
  std::ostringstream content;
  content << std::ifstream(file, std::ios::binary).rdbuf();
  return content.str();
}

void write(const fs::path& file, const std::string& content) { std::ofstream(file, std::ios::binary) << content; }

// What disks, networks and editors do to files, and what hits a parser's lengths and numbers.
std::string broken(std::string content, const std::string& other, Random& random) {
  const size_t place = below(random, content.size()), length = 1 + below(random, 16);
  switch (below(random, 8)) {
    case 0:
      return content.substr(0, place);
    case 1:
      content[place] = static_cast<char>(content[place] ^ (1 << below(random, 8)));
      return content;
    case 2:
      for (size_t i = place; i < std::min(place + length, content.size()); ++i) content[i] = char(random());
      return content;
    case 3:
      return content.erase(place, length);
    case 4:
      return content.insert(place, std::string(length, '\xff'));  // a varint that does not end
    case 5:
      return content.insert(place, content.substr(below(random, content.size()), length));
    case 6:
      // The first bytes are where lengths and types are.
      content[below(random, std::min<size_t>(content.size(), 64))] = char(random());
      return content;
    default:
      return other.substr(0, below(random, other.size() + 1)) + content.substr(place);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const fs::path source = argv[1], scratch = argv[2];
  const size_t count = std::stoul(argv[3]);
  Random random(static_cast<Random::result_type>(std::stoul(argv[4])));
  std::vector<fs::path> names = {"model.onnx", kManifest};
  for (const auto& entry : fs::directory_iterator(source / "test_data_set_0")) {
    names.push_back("test_data_set_0" / entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  fs::copy(source, scratch, fs::copy_options::recursive);

  std::map<int, size_t> codes;
  for (size_t round = 0; round < count; ++round) {
    const fs::path name = names[round % names.size()];
    write(scratch / name, broken(read(source / name), read(source / names[below(random, names.size())]), random));
    std::ostringstream out, err;
    try {
      jumpout::replay::ShapeNodes(read(scratch / "model.onnx"));  // read only after a run on a GPU
    } catch (const jumpout::replay::FormatError&) {
    }
    // A manifest would end every round but its own before a parser has seen what is broken.
    std::vector<std::string> words = {(scratch / "model.onnx").string(), "--repeat", "1"};
    if (name != kManifest) words.push_back("--without-manifest");
    const int code = jumpout::replay::run_command(words, out, err);
    const std::string message = err.str();
    const bool one_line = std::count(message.begin(), message.end(), '\n') == 1;
    const bool named = message.find(scratch.string()) != std::string::npos;
    const bool clear = message.empty() ? code <= 1 && !out.str().empty() : code >= 1 && one_line && named;
    if (code < 0 || code > 3 || !clear) {
      std::cout << "round " << round << ", " << name << ": exit code " << code << ", " << message << out.str() << "\n";
      return 1;
    }
    ++codes[code];
    write(scratch / name, read(source / name));
  }
  for (const auto& [code, times] : codes) std::cout << code << ": " << times << "\n";
}
