#include "provider.h"

#include <algorithm>

#include "errors.h"

namespace jumpout::replay {

const std::vector<Provider>& providers() {
  static const std::vector<Provider> all = {
      {"cpu", "CPUExecutionProvider", "the CPU", true, true},
      // A GPU may add in another order each time.
      {"cuda", "CUDAExecutionProvider", "the GPU", false, false},
  };
  return all;
}

const Provider& fallback() {
  return *std::find_if(providers().begin(), providers().end(), [](const Provider& one) { return one.is_fallback; });
}

const Provider& parse_provider(const std::string& option) {
  for (const Provider& provider : providers()) {
    if (provider.option == option) return provider;
  }
  throw UsageError("--provider must be " + provider_options(" or ") + ", got " + one_line(option));
}

std::string provider_options(const std::string& separator) {
  std::string text;
  for (const Provider& provider : providers()) text += (text.empty() ? "" : separator) + provider.option;
  return text;
}

}  // namespace jumpout::replay
