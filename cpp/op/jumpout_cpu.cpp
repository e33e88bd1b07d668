// CPU path: threads, rows and partial blocks around the kernels of cpu_kernels.h. One thread works on a range of whole
// blocks of eight elements, so no two threads share a byte of keep bits, and the result does not depend on the number
// of threads: decisions are a function of the position alone.
// Reads and writes per element of size s: forward 3s + 1/8 bytes (2s + 1/8 without normalisation, where the same pass
// counts), backward 2s + 1/8.
#include "jumpout_cpu.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu_run.h"

namespace jumpout {
namespace {

// Results of so many bytes are written past the caches. Measured on a Zen 4 (32 MB of cache for all cores), one thread,
// with a consumer that reads the result afterwards: backward takes .58 instead of .69 ns per element at 16 MB and .69
// instead of .81 at 128 MB, forward in float32 .74 instead of .80 at 16 MB; at 8 MB nothing is gained, at 4 MB it
// costs. Forward in 16 bits waits for its arithmetic and loses.
constexpr int64_t kStreamed = 1 << 24;
constexpr int64_t kGrain = 4096;  // blocks per thread below which a second thread does not pay

int threads_for(int64_t size, int64_t grain, int threads) {
  return static_cast<int>(std::clamp<int64_t>(size / std::max<int64_t>(grain, 1), 1, std::max(threads, 1)));
}

// Calls work(first, last) on ranges that cover [0, size), on at most `threads` threads.
template <typename Work>
void parallel(int64_t size, int64_t grain, int threads, const Work& work) {
  const int used = threads_for(size, grain, threads);
#pragma omp parallel for num_threads(used) schedule(static, 1) if (used > 1)
  for (int t = 0; t < used; ++t) work(size * t / used, size * (t + 1) / used);
}

// Elements per row that are > 0.
template <typename T>
std::vector<int64_t> count_rows(const CpuKernels& kernels, DType dtype, const T* x, int64_t n, int64_t rows,
                                int threads) {
  std::vector<int64_t> active(rows);
  const int64_t length = n / rows;
  if (rows == 1) {
    int64_t total = 0;
    const int used = threads_for(n, kGrain * kBlock, threads);
#pragma omp parallel for num_threads(used) schedule(static, 1) reduction(+ : total) if (used > 1)
    for (int t = 0; t < used; ++t) {
      const int64_t first = n * t / used;
      total += kernels.count_active(dtype, x + first, n * (t + 1) / used - first);
    }
    active[0] = total;
  } else {
    parallel(rows, kGrain * kBlock / std::max<int64_t>(1, length), threads, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        active[row] = kernels.count_active(dtype, x + row * length, length);
      }
    });
  }
  return active;
}

// Cuts blocks [first, last) where rows begin: whole(block, blocks, row) for runs of whole blocks of one row,
// part(block, first element, elements, row) for the pieces of a block that spans rows or is the tensor's last.
template <typename Whole, typename Part>
void for_each_piece(int64_t first, int64_t last, int64_t n, int64_t length, const Whole& whole, const Part& part) {
  int64_t block = first, row = first * kBlock / length;
  while (block < last) {
    int64_t i = block * kBlock;
    const int64_t whole_blocks = std::min(last, std::min(n, (row + 1) * length) / kBlock) - block;
    if (whole_blocks > 0) {
      whole(block, whole_blocks, row);
      block += whole_blocks;
      if (block * kBlock == (row + 1) * length) ++row;
      continue;
    }
    for (const int64_t end = std::min(i + kBlock, n); i < end;) {
      const int64_t piece_end = std::min(end, (row + 1) * length);
      part(block, i, piece_end - i, row);
      i = piece_end;
      if (i == (row + 1) * length) ++row;
    }
    ++block;
  }
}

template <typename T>
void forward(DType dtype, const T* x, T* y, uint8_t* keep_bits, Stats* stats, uint64_t seed, int64_t n, int64_t rows,
             const Settings& settings, int threads) {
  const CpuKernels& kernels = select_cpu_kernels();
  const int64_t length = n / rows;
  const bool late = !settings.normalize && rows == 1;  // nothing waits for q, so the pass that writes counts, too
  const std::vector<int64_t> active = late ? std::vector<int64_t>{0} : count_rows(kernels, dtype, x, n, rows, threads);
  for (int64_t row = 0; row < rows; ++row) stats[row] = row_stats(settings, seed, row, active[row], length);
  const bool stream = x != y && sizeof(T) > 2 && n * static_cast<int64_t>(sizeof(T)) >= kStreamed;
  std::atomic<int64_t> counted{0};

  parallel((n + kBlock - 1) / kBlock, kGrain, threads, [&](int64_t first, int64_t last) {
    int64_t here = 0;
    for_each_piece(
        first, last, n, length,
        [&](int64_t block, int64_t blocks, int64_t row) {
          const uint32_t threshold = threshold_of(stats[row].p_prime);
          const ForwardRun run{seed, block, blocks, threshold, stats[row].scale, settings.relu, late, stream};
          here += kernels.forward(dtype, x + block * kBlock, y + block * kBlock, keep_bits + block, run);
        },
        [&](int64_t block, int64_t i, int64_t size, int64_t row) {
          const int64_t shift = i - block * kBlock;
          if (late) here += kernels.count_active(dtype, x + i, size);
          const uint32_t random = keep_byte(seed, block, threshold_of(stats[row].p_prime)) >> shift;
          const uint32_t keep = apply_scalar(x + i, y + i, random & ((1u << size) - 1),
                                             static_cast<Compute<T>>(stats[row].scale), settings.relu, size);
          const uint32_t before = shift == 0 ? 0 : keep_bits[block];  // the first piece of a block starts its byte
          keep_bits[block] = static_cast<uint8_t>(before | keep << shift);
        });
    counted += here;
  });
  if (late) stats[0].q = static_cast<double>(counted) / static_cast<double>(n);
}

template <typename T>
void backward(DType dtype, const T* dy, const uint8_t* keep_bits, const Stats* stats, T* dx, int64_t n, int64_t rows,
              int threads) {
  const CpuKernels& kernels = select_cpu_kernels();
  const int64_t length = n / rows;
  const bool stream = dx != dy && n * static_cast<int64_t>(sizeof(T)) >= kStreamed;
  parallel((n + kBlock - 1) / kBlock, kGrain, threads, [&](int64_t first, int64_t last) {
    for_each_piece(
        first, last, n, length,
        [&](int64_t block, int64_t blocks, int64_t row) {
          const int64_t i = block * kBlock;
          kernels.backward(dtype, dy + i, keep_bits + block, dx + i, blocks, stats[row].scale, stream);
        },
        [&](int64_t block, int64_t i, int64_t size, int64_t row) {
          const uint32_t keep = keep_bits[block] >> (i - block * kBlock);
          apply_scalar(dy + i, dx + i, keep, static_cast<Compute<T>>(stats[row].scale), false, size);
        });
  });
}

}  // namespace

void jumpout_forward_cpu(const void* x, void* y, uint8_t* keep_bits, Stats* stats, uint64_t seed, int64_t n,
                         int64_t rows, DType dtype, const Settings& settings, int threads) {
  if (n == 0) {
    for (int64_t row = 0; row < rows; ++row) stats[row] = row_stats(settings, seed, row, 0, 0);
    return;
  }
  dispatch(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    forward(dtype, static_cast<const T*>(x), static_cast<T*>(y), keep_bits, stats, seed, n, rows, settings, threads);
  });
}

void jumpout_backward_cpu(const void* dy, const uint8_t* keep_bits, const Stats* stats, void* dx, int64_t n,
                          int64_t rows, DType dtype, int threads) {
  if (n == 0) return;
  dispatch(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    backward(dtype, static_cast<const T*>(dy), keep_bits, stats, static_cast<T*>(dx), n, rows, threads);
  });
}

}  // namespace jumpout
