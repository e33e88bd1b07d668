// CUDA path. One thread handles blocks of eight elements: one Philox call, one byte of keep bits, 16-byte loads and
// stores. What an element becomes is decided by the functions of jumpout.h, which the CPU path uses too.
//   count   reads s bytes per element; each thread block leaves one partial count, so there is nothing to clear and no
//           atomic, and the sum is exact and the same each time
//   apply   reads s, writes s + 1/8: every thread block adds up the partial counts (they are in L2), samples the rate
//           and computes the scale itself; it walks backwards, so that what count read last is served from L2
//   rows    per-sample rates: one thread block counts one row
//   backward reads s + 1/8, writes s
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda_pack.h"
#include "jumpout_cuda.h"

namespace jumpout {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerSm = 8;

// Sum over the thread block, valid in thread 0.
__device__ int64_t block_sum(int64_t value) {
  __shared__ int64_t per_warp[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xFFFFFFFF, value, offset);
  __syncthreads();  // the previous sum has been read
  if (threadIdx.x % 32 == 0) per_warp[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kThreads / 32; ++warp) value += per_warp[warp];
  }
  return value;
}

template <typename T, bool kAligned>
__device__ __forceinline__ int64_t count_block(const T* x, int64_t block, int64_t n) {
  const Pack<T> pack = load<T, kAligned>(x, block, n);
  int active = 0;
#pragma unroll
  for (int i = 0; i < kBlock; ++i) active += widen(pack.value[i]) > 0;
  return active;
}

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads) count_kernel(const T* x, int64_t* partial, int64_t n) {
  const int64_t blocks = (n + kBlock - 1) / kBlock, step = int64_t{gridDim.x} * kThreads;
  int64_t active = 0;
  for (int64_t block = int64_t{blockIdx.x} * kThreads + threadIdx.x; block < blocks; block += step) {
    active += count_block<T, kAligned>(x, block, n);
  }
  active = block_sum(active);
  if (threadIdx.x == 0) partial[blockIdx.x] = active;
}

// One thread block per row, in turn; rows need not begin at a multiple of eight.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    rows_kernel(const T* x, Stats* stats, const uint64_t* seed, int64_t rows, int64_t length, Settings settings) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    int64_t active = 0;
    for (int64_t i = threadIdx.x; i < length; i += kThreads) active += widen(x[row * length + i]) > 0;
    active = block_sum(active);
    if (threadIdx.x == 0) stats[row] = row_stats(settings, *seed, row, active, length);
  }
}

// Applies keep bits and scale to one block of one row; returns the bits that stayed.
template <typename T>
__device__ __forceinline__ uint32_t apply_pack(Pack<T>* pack, uint32_t keep, double scale, bool relu) {
  const auto factor = static_cast<typename Element<T>::Compute>(scale);
#pragma unroll
  for (int i = 0; i < kBlock; ++i) {
    const auto value = widen(pack->value[i]);
    if (relu && value <= 0) keep &= ~(1u << i);  // as torch's relu: NaN passes
    narrow(keep >> i & 1 ? value * factor : 0, &pack->value[i]);
  }
  return keep;
}

// Bits of elements that exist; the last block may be partial.
__device__ __forceinline__ uint32_t existing(int64_t block, int64_t n) {
  const int64_t left = n - block * kBlock;
  return left >= kBlock ? 0xFF : (1u << left) - 1;
}

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    apply_kernel(const T* x, T* y, uint8_t* keep_bits, Stats* stats, const uint64_t* seed_pointer,
                 const int64_t* partial, int partials, int64_t n, Settings settings) {
  __shared__ Stats shared;
  const uint64_t seed = *seed_pointer;
  int64_t active = 0;
  for (int i = threadIdx.x; i < partials; i += kThreads) active += partial[i];
  active = block_sum(active);
  if (threadIdx.x == 0) {
    shared = row_stats(settings, seed, 0, active, n);
    if (blockIdx.x == 0) stats[0] = shared;
  }
  __syncthreads();
  const uint32_t threshold = threshold_of(shared.p_prime);
  const double scale = shared.scale;

  const int64_t blocks = (n + kBlock - 1) / kBlock, step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < blocks; i += step) {
    const int64_t block = blocks - 1 - i;
    Pack<T> pack = load<T, kAligned>(x, block, n);
    const uint32_t keep = keep_byte(seed, block, threshold) & existing(block, n);
    keep_bits[block] = static_cast<uint8_t>(apply_pack(&pack, keep, scale, settings.relu));
    store<T, kAligned>(y, block, n, pack);
  }
}

// Per-sample rates; a block of eight may span rows.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    apply_rows_kernel(const T* x, T* y, uint8_t* keep_bits, const Stats* stats, const uint64_t* seed_pointer, int64_t n,
                      int64_t length, bool relu) {
  const uint64_t seed = *seed_pointer;
  const int64_t blocks = (n + kBlock - 1) / kBlock, step = int64_t{gridDim.x} * kThreads;
  for (int64_t block = int64_t{blockIdx.x} * kThreads + threadIdx.x; block < blocks; block += step) {
    Pack<T> pack = load<T, kAligned>(x, block, n);
    const int64_t first = block * kBlock, row = first / length;
    uint32_t keep = 0;
    if ((row + 1) * length >= first + kBlock) {
      keep = keep_byte(seed, block, threshold_of(stats[row].p_prime)) & existing(block, n);
      keep = apply_pack(&pack, keep, stats[row].scale, relu);
    } else {
      for (int i = 0; i < kBlock && first + i < n; ++i) {
        const Stats& own = stats[(first + i) / length];
        const uint32_t bit = keep_byte(seed, block, threshold_of(own.p_prime)) & (1u << i);
        Pack<T> scaled = pack;
        keep |= apply_pack(&scaled, bit, own.scale, relu) & (1u << i);
        pack.value[i] = scaled.value[i];
      }
    }
    keep_bits[block] = static_cast<uint8_t>(keep);
    store<T, kAligned>(y, block, n, pack);
  }
}

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* dy, const uint8_t* keep_bits, const Stats* stats, T* dx, int64_t n, int64_t length) {
  const int64_t blocks = (n + kBlock - 1) / kBlock, step = int64_t{gridDim.x} * kThreads;
  for (int64_t block = int64_t{blockIdx.x} * kThreads + threadIdx.x; block < blocks; block += step) {
    Pack<T> pack = load<T, kAligned>(dy, block, n);
    const uint32_t keep = keep_bits[block];
    const int64_t first = block * kBlock, row = first / length;
    if ((row + 1) * length >= first + kBlock) {
      apply_pack(&pack, keep, stats[row].scale, false);
    } else {
      for (int i = 0; i < kBlock && first + i < n; ++i) {
        Pack<T> scaled = pack;
        apply_pack(&scaled, keep & (1u << i), stats[(first + i) / length].scale, false);
        pack.value[i] = scaled.value[i];
      }
    }
    store<T, kAligned>(dx, block, n, pack);
  }
}

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (device != previous_) check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = device != previous_;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

// Enough thread blocks to fill the device, and no more than there is work for.
int grid_for(int64_t thread_blocks, int device) {
  int sms = 0;
  check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  return static_cast<int>(std::clamp<int64_t>(thread_blocks, 1, std::min(sms * kBlocksPerSm, kCudaScratch)));
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// An ordinary function call to any C++ compiler, unlike <<<>>>: the tests compile this file without nvcc, too.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int grid, cudaStream_t stream, Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = kThreads;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), "jumpout kernel");
}

bool aligned(const void* a, const void* b) {
  return (reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b)) % sizeof(uint4) == 0;
}

// Calls work with a null pointer of the element type.
template <typename Work>
void dispatch(DType dtype, const Work& work) {
  switch (dtype) {
    case DType::kFloat32:
      return work(static_cast<float*>(nullptr));
    case DType::kFloat64:
      return work(static_cast<double*>(nullptr));
    case DType::kBFloat16:
      return work(static_cast<__nv_bfloat16*>(nullptr));
    case DType::kFloat16:
      return work(static_cast<__half*>(nullptr));
  }
}

template <typename T, bool kAligned>
void forward(const T* x, T* y, uint8_t* keep_bits, Stats* stats, const uint64_t* seed, int64_t* scratch, int64_t n,
             int64_t rows, const Settings& settings, int device, cudaStream_t stream) {
  const int grid = grid_for(divide_up(n, kBlock * kThreads), device);
  if (rows == 1) {
    launch(count_kernel<T, kAligned>, grid, stream, x, scratch, n);
    launch(apply_kernel<T, kAligned>, grid, stream, x, y, keep_bits, stats, seed, scratch, grid, n, settings);
    return;
  }
  const int64_t length = std::max<int64_t>(n / std::max<int64_t>(rows, 1), 1);
  if (rows > 0) launch(rows_kernel<T>, grid_for(rows, device), stream, x, stats, seed, rows, n / rows, settings);
  launch(apply_rows_kernel<T, kAligned>, grid, stream, x, y, keep_bits, stats, seed, n, length, settings.relu);
}

}  // namespace

void jumpout_forward_cuda(const void* x, void* y, uint8_t* keep_bits, Stats* stats, const uint64_t* seed,
                          int64_t* scratch, int64_t n, int64_t rows, DType dtype, const Settings& settings, int device,
                          void* stream) {
  const DeviceGuard guard(device);
  dispatch(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto function = aligned(x, y) ? forward<T, true> : forward<T, false>;
    function(static_cast<const T*>(x), static_cast<T*>(y), keep_bits, stats, seed, scratch, n, rows, settings, device,
             static_cast<cudaStream_t>(stream));
  });
}

void jumpout_backward_cuda(const void* dy, const uint8_t* keep_bits, const Stats* stats, void* dx, int64_t n,
                           int64_t rows, DType dtype, int device, void* stream) {
  if (n == 0) return;
  const DeviceGuard guard(device);
  const int grid = grid_for(divide_up(n, kBlock * kThreads), device);
  dispatch(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto kernel = aligned(dy, dx) ? backward_kernel<T, true> : backward_kernel<T, false>;
    launch(kernel, grid, static_cast<cudaStream_t>(stream), static_cast<const T*>(dy), keep_bits, stats,
           static_cast<T*>(dx), n, n / rows);
  });
}

}  // namespace jumpout
