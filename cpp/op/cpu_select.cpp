// Which kernels this processor runs.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu_kernels.h"

namespace jumpout {
#ifdef JUMPOUT_NEON
extern const CpuKernels kNeonKernels;
#endif

namespace {

bool supported(const CpuKernels& kernels) {
#ifdef JUMPOUT_X86
  // __builtin_cpu_supports also asks whether the operating system saves the registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
  if (&kernels == &kAvx2Kernels) return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("bmi2");
  if (&kernels == &kAvx512Kernels) return avx512;
  if (&kernels == &kAvx512Bf16Kernels) return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
#ifdef JUMPOUT_NEON
  if (&kernels == &kNeonKernels) return true;  // part of every 64-bit ARM processor
#endif
  return &kernels == &kScalarKernels;
}

}  // namespace

const CpuKernels& select_cpu_kernels() {
  static const CpuKernels* const all[] = {
#ifdef JUMPOUT_X86
      &kAvx512Bf16Kernels, &kAvx512Kernels, &kAvx2Kernels,
#endif
#ifdef JUMPOUT_NEON
      &kNeonKernels,
#endif
      &kScalarKernels,
  };
  const char* wanted = std::getenv("JUMPOUT_CPU_ISA");
  std::string names;
  for (const CpuKernels* kernels : all) {
    if (!supported(*kernels)) continue;
    if (wanted == nullptr || *wanted == 0 || std::strcmp(wanted, kernels->name) == 0) return *kernels;
    names += names.empty() ? kernels->name : std::string(", ") + kernels->name;
  }
  throw std::invalid_argument("JUMPOUT_CPU_ISA must be one of " + names + " on this processor, got " + wanted);
}

}  // namespace jumpout
