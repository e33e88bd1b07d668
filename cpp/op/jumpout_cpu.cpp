// CPU kernels. One thread works on a range of whole blocks of eight elements, so no two threads share a byte of keep
// bits, and the result does not depend on the number of threads: decisions are a function of the position alone.
// Reads and writes per element of size s: forward 3s + 1/8 bytes (2s + 1/8 without normalisation), backward 2s + 1/8.
#include "jumpout_cpu.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "half.h"

namespace jumpout {
namespace {

constexpr int64_t kGrain = 4096;  // blocks per thread below which a second thread does not pay

template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
int64_t count_active(const T* x, int64_t n) {
  int64_t active = 0;
  for (int64_t i = 0; i < n; ++i) active += widen(x[i]) > 0;  // false for NaN and -0
  return active;
}

// Calls work(first, last) on ranges that cover [0, size), on at most `threads` threads.
template <typename Work>
void parallel(int64_t size, int64_t grain, int threads, const Work& work) {
  const int used = static_cast<int>(std::clamp<int64_t>((size + grain - 1) / grain, 1, std::max(threads, 1)));
  if (used == 1) {
    work(int64_t{0}, size);
    return;
  }
#pragma omp parallel for num_threads(used) schedule(static, 1)
  for (int t = 0; t < used; ++t) work(size * t / used, size * (t + 1) / used);
}

template <typename T>
void count_rows(const T* x, int64_t n, int64_t rows, std::vector<int64_t>& active, int threads) {
  const int64_t length = n / rows;
  if (rows == 1) {
    int64_t total = 0;
    const int used = static_cast<int>(std::clamp<int64_t>(n / (kGrain * kBlock), 1, std::max(threads, 1)));
#pragma omp parallel for num_threads(used) schedule(static, 1) reduction(+ : total) if (used > 1)
    for (int t = 0; t < used; ++t) {
      const int64_t first = n * t / used;
      total += count_active(x + first, n * (t + 1) / used - first);
    }
    active[0] = total;
  } else {
    const int64_t grain = std::max<int64_t>(1, kGrain * kBlock / std::max<int64_t>(1, length));
    parallel(rows, grain, threads, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) active[row] = count_active(x + row * length, length);
    });
  }
}

// Calls visit(block, first element, elements, row) for the pieces of blocks [first, last); a block that spans rows
// comes in several pieces.
template <typename Visit>
void for_each_piece(int64_t first, int64_t last, int64_t n, int64_t length, const Visit& visit) {
  int64_t row = first * kBlock / length;
  for (int64_t block = first; block < last; ++block) {
    int64_t i = block * kBlock;
    const int64_t end = std::min(i + kBlock, n);
    while (i < end) {
      const int64_t piece_end = std::min(end, (row + 1) * length);
      visit(block, i, piece_end - i, row);
      i = piece_end;
      if (i == (row + 1) * length) ++row;
    }
  }
}

template <typename T>
void forward(const T* x, T* y, uint8_t* keep_bits, Stats* stats, uint64_t seed, int64_t n, int64_t rows,
             const Settings& settings, int threads) {
  std::vector<int64_t> active(rows);
  count_rows(x, n, rows, active, threads);
  const int64_t length = n / rows;
  for (int64_t row = 0; row < rows; ++row) stats[row] = row_stats(settings, seed, row, active[row], length);

  const bool relu = settings.relu;
  parallel((n + kBlock - 1) / kBlock, kGrain, threads, [&](int64_t first, int64_t last) {
    if (first < last) std::fill(keep_bits + first, keep_bits + last, uint8_t{0});
    for_each_piece(first, last, n, length, [&](int64_t block, int64_t i, int64_t size, int64_t row) {
      const auto scale = static_cast<Compute<T>>(stats[row].scale);
      uint32_t keep = keep_byte(seed, block, threshold_of(stats[row].p_prime));
      const int shift = static_cast<int>(i - block * kBlock);
      keep &= ((1u << size) - 1) << shift;
      for (int64_t j = 0; j < size; ++j) {
        const Compute<T> value = widen(x[i + j]);
        if (relu && value <= 0) keep &= ~(1u << (shift + j));  // as torch's relu: NaN passes
        narrow(keep >> (shift + j) & 1 ? value * scale : Compute<T>{0}, &y[i + j]);
      }
      keep_bits[block] = static_cast<uint8_t>(keep_bits[block] | keep);
    });
  });
}

template <typename T>
void backward(const T* dy, const uint8_t* keep_bits, const Stats* stats, T* dx, int64_t n, int64_t rows, int threads) {
  const int64_t length = n / rows;
  parallel((n + kBlock - 1) / kBlock, kGrain, threads, [&](int64_t first, int64_t last) {
    for_each_piece(first, last, n, length, [&](int64_t block, int64_t i, int64_t size, int64_t row) {
      const auto scale = static_cast<Compute<T>>(stats[row].scale);
      const uint32_t keep = keep_bits[block] >> (i - block * kBlock);
      for (int64_t j = 0; j < size; ++j) {
        narrow(keep >> j & 1 ? widen(dy[i + j]) * scale : Compute<T>{0}, &dx[i + j]);
      }
    });
  });
}

// Calls work with a null pointer of the element type.
template <typename Work>
void dispatch(DType dtype, const Work& work) {
  switch (dtype) {
    case DType::kFloat32: return work(static_cast<float*>(nullptr));
    case DType::kFloat64: return work(static_cast<double*>(nullptr));
    case DType::kBFloat16: return work(static_cast<BFloat16*>(nullptr));
    case DType::kFloat16: return work(static_cast<Float16*>(nullptr));
  }
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
    forward(static_cast<const T*>(x), static_cast<T*>(y), keep_bits, stats, seed, n, rows, settings, threads);
  });
}

void jumpout_backward_cpu(const void* dy, const uint8_t* keep_bits, const Stats* stats, void* dx, int64_t n,
                          int64_t rows, DType dtype, int threads) {
  if (n == 0) return;
  dispatch(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    backward(static_cast<const T*>(dy), keep_bits, stats, static_cast<T*>(dx), n, rows, threads);
  });
}

}  // namespace jumpout
