// Prints what a part of the library makes of bytes on stdin: replay-parts sha256 [PIECE] | json [NAME...]
// `sha256` adds them in pieces of PIECE bytes; `json` prints the kind of the value that the names lead to, and its
// text.
#include <algorithm>
#include <iostream>
#include <iterator>
#include <string>

#include "json.h"
#include "sha256.h"
#include "wire.h"

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const std::string input{std::istreambuf_iterator<char>(std::cin), {}}, part = argv[1];
  if (part == "sha256") {
    const size_t piece = argc > 2 ? std::stoul(argv[2]) : std::max<size_t>(input.size(), 1);
    jumpout::replay::Sha256 hash;
    for (size_t at = 0; at < input.size(); at += piece) hash.add(std::string_view(input).substr(at, piece));
    std::cout << hash.hex() << "\n";
    return 0;
  }
  try {
    const jumpout::replay::Json document = jumpout::replay::parse_json(input);
    const jumpout::replay::Json* value = &document;
    for (int i = 2; i < argc; ++i) value = &(*value)[argv[i]];
    std::cout << static_cast<int>(value->kind) << " " << value->text << "\n";
  } catch (const jumpout::replay::FormatError& error) {
    std::cout << "error: " << error.what() << "\n";
  }
}
