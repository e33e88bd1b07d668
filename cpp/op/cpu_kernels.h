// The inner loops of the CPU path, once per instruction set: runs of whole blocks of eight elements with one threshold
// and one scale. Everything else (threads, rows, partial blocks) is in jumpout_cpu.cpp, once.
#pragma once

#include <cstdint>

#include "jumpout.h"

namespace jumpout {

struct ForwardRun {
  uint64_t seed;
  int64_t first_block;  // of the run, in the whole tensor: the Philox counter
  int64_t blocks;
  uint32_t threshold;
  double scale;
  bool relu;
};

// x, y, dy, dx, keep_bits point to the first element (bits: byte) of the run.
struct CpuKernels {
  const char* name;
  int64_t (*count_active)(DType dtype, const void* x, int64_t n);
  void (*forward)(DType dtype, const void* x, void* y, uint8_t* keep_bits, const ForwardRun& run);
  void (*backward)(DType dtype, const void* dy, const uint8_t* keep_bits, void* dx, int64_t blocks, double scale);
};

extern const CpuKernels kScalarKernels;
#ifdef JUMPOUT_X86
extern const CpuKernels kAvx2Kernels;
extern const CpuKernels kAvx512Kernels;
#endif

// The widest kernels this processor runs, or those that JUMPOUT_CPU_ISA (scalar, avx2, avx512) asks for. An unknown or
// unsupported name throws std::invalid_argument. Decided once per call of this function.
const CpuKernels& select_cpu_kernels();

}  // namespace jumpout
