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
  bool count;   // return how many elements are > 0; else 0
  bool stream;  // write y past the caches, as far as the instruction set can and y is aligned
};

// x, y, dy, dx, keep_bits point to the first element (bits: byte) of the run.
struct CpuKernels {
  const char* name;
  int64_t (*count_active)(DType dtype, const void* x, int64_t n);
  int64_t (*forward)(DType dtype, const void* x, void* y, uint8_t* keep_bits, const ForwardRun& run);
  void (*backward)(DType dtype, const void* dy, const uint8_t* keep_bits, void* dx, int64_t blocks, double scale,
                   bool stream);
};

extern const CpuKernels kScalarKernels;
#ifdef JUMPOUT_X86
extern const CpuKernels kAvx2Kernels;
extern const CpuKernels kAvx512Kernels;
extern const CpuKernels kAvx512Bf16Kernels;
#endif

// The widest kernels this processor runs, or those that JUMPOUT_CPU_ISA (scalar, avx2, avx512, avx512_bf16) asks for.
// An unknown or unsupported name throws std::invalid_argument. Decided once per call of this function.
const CpuKernels& select_cpu_kernels();

}  // namespace jumpout
