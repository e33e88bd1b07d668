// The execution providers that a model is replayed on. Another one is a row in provider.cpp, and in session.cpp the
// function that appends it.
#pragma once

#include <string>
#include <vector>

namespace jumpout::replay {

struct Provider {
  std::string option;  // what --provider calls it
  std::string name;    // what ONNX Runtime calls it
  std::string device;  // what its nodes run on, for a person
  bool is_fallback;    // takes the nodes that no other takes, and can always be used
  bool must_repeat;    // two runs give the same bits
};

const std::vector<Provider>& providers();

// The one that takes what no other does.
const Provider& fallback();

// Throws UsageError if there is none that --provider calls so.
const Provider& parse_provider(const std::string& option);

// All of them as --provider calls them, with something between them.
std::string provider_options(const std::string& separator);

}  // namespace jumpout::replay
