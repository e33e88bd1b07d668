// The AVX-512 kernels as every processor with F, BW, DQ, VL and BMI2 runs them.
#include "cpu_avx512.h"

namespace jumpout {

const CpuKernels kAvx512Kernels = make_kernels<Avx512>("avx512");

}  // namespace jumpout
