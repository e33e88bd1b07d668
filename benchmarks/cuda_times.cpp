// Times of the CUDA kernels beside a copy, without Python and torch. Each call takes the next of several sets of arrays
// that together do not fit in the L2 cache. Prints JSON: microseconds, the median of five rounds, and the bytes per
// second over those that have to move (forward 3 s + 1/8 an element of s bytes, backward 2 s + 1/8, a copy 2 s).
//   cuda_times [LARGEST [CALLS]]    no size above so many elements, 2^27 if not given; calls in a round
// Compile with nvcc; on the emulator (tests/cpp/cuda) it runs, too, and its numbers mean nothing.
#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "emulator.h"
#endif

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "arrays.h"
#include "jumpout_cuda.h"

using namespace jumpout;

namespace {

constexpr size_t kCache = size_t{256} << 20;  // bytes that all sets together exceed
constexpr int kRounds = 5;

class Times {
 public:
  Times(DType dtype, int64_t n, int calls) : dtype_(dtype), n_(n), calls_(calls), bytes_(n * size_of(dtype)) {
    std::mt19937_64 random(1);
    const Bytes x = numbers(dtype, n, 1 << 20, random), empty(x.size());
    const size_t sets = std::clamp<size_t>(kCache / (2 * bytes_), 1, 64);
    for (size_t i = 0; i < sets; ++i) {
      x_.emplace_back(new DeviceArray(x, 0, true));
      y_.emplace_back(new DeviceArray(empty, 0, true));
      keep_.emplace_back(new DeviceArray(Bytes((n + 7) / 8), 0, true));
    }
    must(cudaEventCreate(&start_), "cudaEventCreate");
    must(cudaEventCreate(&stop_), "cudaEventCreate");
  }

  void print(bool first) {
    const char* name = dtype_ == DType::kFloat32 ? "float32" : "bfloat16";
    const double s = static_cast<double>(size_of(dtype_));
    std::printf("%s {\"dtype\": \"%s\", \"elements\": %lld", first ? "" : ",\n", name, static_cast<long long>(n_));
    report("copy", 2 * s, [&](size_t i) {
      must(cudaMemcpyAsync(y_[i]->at(), x_[i]->at(), bytes_, cudaMemcpyDeviceToDevice, nullptr), "a copy");
    });
    for (const bool relu : {false, true}) {
      report(relu ? "forward relu" : "forward", 3 * s + 0.125, [&](size_t i) { forward(i, 1, relu); });
    }
    for (const int64_t rows : {8, 64, 1024}) {
      if (n_ % rows == 0 && n_ > rows) {
        report("forward " + std::to_string(rows) + " rows", 3 * s + 0.125, [&](size_t i) { forward(i, rows, true); });
      }
    }
    report("backward", 2 * s + 0.125, [&](size_t i) {
      jumpout_backward_cuda(x_[i]->at(), keep_[i]->at<uint8_t>(), stats_.at<Stats>(), y_[i]->at(), n_, 1, dtype_, 0,
                            nullptr);
    });
    std::printf("}");
  }

 private:
  void forward(size_t i, int64_t rows, bool relu) {
    const Settings settings{-1, 0.1, 0.01, 0.6, 0.95, 0.75, true, false, relu};
    jumpout_forward_cuda(x_[i]->at(), y_[i]->at(), keep_[i]->at<uint8_t>(), stats_.at<Stats>(), seed_.at<uint64_t>(),
                         scratch_.at<double>(), n_, rows, dtype_, settings, 0, nullptr);
  }

  template <typename Call>
  void report(const std::string& name, double bytes, const Call& call) {
    std::vector<float> microseconds;
    for (int round = 0; round < kRounds; ++round) {
      call(0);
      must(cudaEventRecord(start_, nullptr), "cudaEventRecord");
      for (int k = 0; k < calls_; ++k) call(k % x_.size());
      must(cudaEventRecord(stop_, nullptr), "cudaEventRecord");
      must(cudaEventSynchronize(stop_), "a kernel");
      float milliseconds = 0;
      must(cudaEventElapsedTime(&milliseconds, start_, stop_), "cudaEventElapsedTime");
      microseconds.push_back(milliseconds / calls_ * 1e3f);
    }
    std::nth_element(microseconds.begin(), microseconds.begin() + kRounds / 2, microseconds.end());
    const double median = microseconds[kRounds / 2];
    std::printf(",\n  \"%s\": {\"us\": %.2f, \"TB/s\": %.3f}", name.c_str(), median, bytes * n_ / median / 1e6);
  }

  static constexpr int64_t kMostScratch = 1 << 20;
  DType dtype_;
  int64_t n_;
  int calls_;
  size_t bytes_;
  std::vector<std::unique_ptr<DeviceArray>> x_, y_, keep_;
  DeviceArray stats_{Bytes(1024 * sizeof(Stats)), 0, true}, seed_{Bytes(8, 1), 0, true};
  DeviceArray scratch_{Bytes(kMostScratch), 0, true};
  cudaEvent_t start_, stop_;
};

}  // namespace

int main(int count, char** arguments) {
  const int64_t largest = count > 1 ? std::atoll(arguments[1]) : int64_t{1} << 27;
  const int calls = count > 2 ? std::atoi(arguments[2]) : 0;
  bool first = true;
  std::printf("[");
  for (const DType dtype : {DType::kBFloat16, DType::kFloat32}) {
    for (const int64_t n : {1 << 12, 1 << 18, 1 << 22, 20 << 20, 1 << 26, 1 << 27}) {
      if (n > largest) continue;
      Times(dtype, n, calls > 0 ? calls : n >= 1 << 22 ? 8 : 64).print(first);
      first = false;
    }
  }
  std::printf("]\n");
  std::fflush(stdout);
  std::_Exit(0);  // without waiting for the emulator's threads
}
