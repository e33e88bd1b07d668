// CUDA path: which kernels are launched for a call. One thread handles packs of eight elements: one Philox call, one
// byte of keep bits, 16-byte loads and stores. What an element becomes is decided by the functions of jumpout.h, which
// the CPU path uses too. Per element, of s bytes, 3 s + 1/8 are moved forward and 2 s + 1/8 backward.
#include <algorithm>

#include "cuda_apply.h"
#include "cuda_count.h"
#include "cuda_launch.h"
#include "jumpout_cuda.h"

namespace jumpout {
namespace {

// Rows up to this length are counted by a warp each, of which a thread block has several.
constexpr int64_t kShortRow = 4096;

// Parts that a row is counted in: few rows would leave most of the device idle. A part is worth at least one turn.
int parts_of(int64_t length, int64_t rows, int most_blocks) {
  if (rows == 0 || (rows > 1 && length <= kShortRow)) return 1;
  const int64_t turns = divide_up(divide_up(length, kBlock), kThreads * kCountPacks);
  return static_cast<int>(std::clamp<int64_t>(turns, 1, std::max<int64_t>(most_blocks / rows, 1)));
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

// Statistics of every row.
template <typename T, bool kAligned>
void sample(const T* x, Stats* stats, const uint64_t* seed, double* scratch, int64_t rows, int64_t length,
            const Settings& settings, const Queue& queue) {
  if (rows == 1 && length <= kBlock * kThreads * kCountPacks) {
    return queue.launch(count_all_kernel<T, kAligned>, 1, x, stats, seed, length, settings);
  }
  const int parts = parts_of(length, rows, resident(count_kernel<T, kAligned, kThreads>, queue.device));
  // One number a row waits in the statistics, which the rate then overwrites.
  double* counts = parts > 1 ? scratch : &stats->q;
  const int stride = parts > 1 ? 1 : sizeof(Stats) / sizeof(double);
  if (length <= kShortRow) {
    constexpr int kRows = kThreads / kWarp;
    queue.launch(count_kernel<T, kAligned, kWarp>, divide_up(rows, kRows), x, counts, stride, rows, length, parts);
  } else {
    queue.launch(count_kernel<T, kAligned, kThreads>, rows * parts, x, counts, stride, rows, length, parts);
  }
  if (parts > 1) {
    queue.launch(rate_kernel<kThreads>, rows, counts, stride, parts, stats, seed, rows, length, settings);
  } else {
    queue.launch(rate_kernel<1>, divide_up(rows, kThreads), counts, stride, parts, stats, seed, rows, length, settings);
  }
}

template <typename T, bool kAligned, bool kRelu>
void apply(const T* x, T* y, uint8_t* keep_bits, const Stats* stats, const uint64_t* seed, int64_t n, int64_t rows,
           const Queue& queue) {
  if (rows == 1) {
    const int64_t blocks = divide_up(n, kBlock * kThreads * kPacks);
    queue.launch(apply_kernel<T, kAligned, kRelu>, blocks, x, y, keep_bits, stats, seed, n);
  } else {
    const int64_t blocks = divide_up(n, kBlock * kThreads);
    queue.launch(apply_rows_kernel<T, kAligned, kRelu>, blocks, x, y, keep_bits, stats, seed, n, n / rows);
  }
}

template <typename T, bool kAligned>
void forward(const T* x, T* y, uint8_t* keep_bits, Stats* stats, const uint64_t* seed, double* scratch, int64_t n,
             int64_t rows, const Settings& settings, const Queue& queue) {
  if (rows == 0) return;
  sample<T, kAligned>(x, stats, seed, scratch, rows, n / rows, settings, queue);
  if (n == 0) return;
  const auto function = settings.relu ? apply<T, kAligned, true> : apply<T, kAligned, false>;
  function(x, y, keep_bits, stats, seed, n, rows, queue);
}

template <typename T, bool kAligned>
void backward(const T* dy, const uint8_t* keep_bits, const Stats* stats, T* dx, int64_t n, int64_t rows,
              const Queue& queue) {
  if (rows == 1) {
    const int64_t blocks = divide_up(n, kBlock * kThreads * kPacks);
    queue.launch(backward_kernel<T, kAligned>, blocks, dy, keep_bits, stats, dx, n);
  } else {
    const int64_t blocks = divide_up(n, kBlock * kThreads);
    queue.launch(backward_rows_kernel<T, kAligned>, blocks, dy, keep_bits, stats, dx, n, n / rows);
  }
}

}  // namespace

int64_t jumpout_scratch_cuda(int64_t n, int64_t rows, int device) {
  if (rows == 0) return 0;
  const int parts = parts_of(n / rows, rows, most_resident(device));  // the kernel that counts may have fewer
  return parts > 1 ? rows * parts : 0;
}

void jumpout_forward_cuda(const void* x, void* y, uint8_t* keep_bits, Stats* stats, const uint64_t* seed,
                          double* scratch, int64_t n, int64_t rows, DType dtype, const Settings& settings, int device,
                          void* stream) {
  const Queue queue{device, static_cast<cudaStream_t>(stream)};
  dispatch(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto function = aligned(x, y) ? forward<T, true> : forward<T, false>;
    function(static_cast<const T*>(x), static_cast<T*>(y), keep_bits, stats, seed, scratch, n, rows, settings, queue);
  });
}

void jumpout_backward_cuda(const void* dy, const uint8_t* keep_bits, const Stats* stats, void* dx, int64_t n,
                           int64_t rows, DType dtype, int device, void* stream) {
  if (n == 0) return;
  const Queue queue{device, static_cast<cudaStream_t>(stream)};
  dispatch(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto function = aligned(dy, dx) ? backward<T, true> : backward<T, false>;
    function(static_cast<const T*>(dy), keep_bits, stats, static_cast<T*>(dx), n, rows, queue);
  });
}

}  // namespace jumpout
