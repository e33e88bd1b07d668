// What the kernels cost without Python and without allocations, beside the least that the same memory traffic costs:
// one pass that counts the active elements, and one that scales them into another array, with and without
// non-temporal stores. One thread, float32. Prints one JSON object: nanoseconds per element, the fastest of many runs.
//   c++ -O3 -march=native -ffp-contract=off -std=c++17 -I cpp/op benchmarks/floor.cpp cpp/op/jumpout_cpu.cpp ...
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "cpu_kernels.h"

namespace {

constexpr int64_t kElements[] = {1 << 18, 1 << 22};  // 1 MB and 16 MB
constexpr double kSeconds = 0.5;                     // per function and size

template <typename Work>
double nanoseconds_per_element(int64_t n, const Work& work) {
  using Clock = std::chrono::steady_clock;
  double best = 1e9;
  const auto end = Clock::now() + std::chrono::duration<double>(kSeconds);
  while (Clock::now() < end) {
    const auto start = Clock::now();
    work();
    best = std::min(best, std::chrono::duration<double, std::nano>(Clock::now() - start).count() / n);
  }
  return best;
}

int64_t count_positive(const float* x, int64_t n) {
  int64_t active = 0;
  for (int64_t i = 0; i < n; ++i) active += x[i] > 0;
  return active;
}

void scale(const float* x, float* y, int64_t n, float factor) {
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * factor;
}

void scale_streaming(const float* x, float* y, int64_t n, float factor) {
  for (int64_t i = 0; i < n; i += 8) {
    _mm256_stream_ps(y + i, _mm256_mul_ps(_mm256_load_ps(x + i), _mm256_set1_ps(factor)));
  }
  _mm_sfence();
}

}  // namespace

int main() {
  const auto& kernels = jumpout::select_cpu_kernels();
  constexpr auto kType = jumpout::DType::kFloat32;
  volatile int64_t sink = 0;
  std::printf("{\"kernels\": \"%s\"", kernels.name);
  for (const int64_t n : kElements) {
    const auto array = [n] {
      auto* memory = static_cast<float*>(std::aligned_alloc(64, n * sizeof(float)));
      for (int64_t i = 0; i < n; ++i) memory[i] = static_cast<float>(std::rand()) / RAND_MAX - 0.5f;
      return std::unique_ptr<float, decltype(&std::free)>(memory, &std::free);
    };
    const auto from = array(), to = array();
    const auto bits = std::make_unique<uint8_t[]>(n / jumpout::kBlock);
    const float* x = from.get();
    float* y = to.get();
    const jumpout::ForwardRun run{7, 0, n / jumpout::kBlock, 20000, 1.2, false, false, false};
    const auto time = [n](const auto& work) { return nanoseconds_per_element(n, work); };
    const double count_floor = time([&] { sink = count_positive(x, n); });
    const double scale_floor =
        std::min(time([&] { scale(x, y, n, 1.2f); }), time([&] { scale_streaming(x, y, n, 1.2f); }));
    const double count = time([&] { sink = kernels.count_active(kType, x, n); });
    const double forward = time([&] { kernels.forward(kType, x, y, bits.get(), run); });
    const double backward = time([&] { kernels.backward(kType, x, bits.get(), y, n / jumpout::kBlock, 1.2, false); });
    std::printf(
        ", \"%lld MB\": {\"count floor\": %.4f, \"scale floor\": %.4f, \"count\": %.4f, \"forward\": %.4f, "
        "\"backward\": %.4f}",
        static_cast<long long>(n >> 18), count_floor, scale_floor, count, forward, backward);
  }
  std::puts("}");
}
