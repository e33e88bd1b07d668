// Prints one line per case, its name and a hash of every byte that the CPU op wrote: tools/check_neon.sh compares the
// lines of all instruction sets and processors. Runs the kernels that JUMPOUT_CPU_ISA chooses; needs neither Python nor
// torch. Fails by itself when a kernel writes outside its arrays or in-place and fresh output differ.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "../../cpp/op/cpu_kernels.h"
#include "../../cpp/op/jumpout_cpu.h"

using namespace jumpout;

namespace {

constexpr uint8_t kUntouched = 0xA5;
constexpr int64_t kGuard = 256;  // bytes on either side of an array; more than a tile writes
const char* const kDtypeNames[] = {"float32", "float64", "bfloat16", "float16"};
constexpr int64_t kDtypeSizes[] = {4, 8, 2, 2};

struct Case {
  int dtype;
  int64_t n, rows, offset;  // offset of all arrays from an aligned address, in elements
  bool relu, sampled, normalize;
  double p;
  int threads;
};

// Reproducible on every machine, unlike the generators of <random> in their distributions.
uint64_t next_random() {
  static uint64_t state = 0;
  uint64_t z = state += 0x9E3779B97F4A7C15;  // Steele, Lea, Flood, "Fast splittable ...", OOPSLA 2014: SplitMix64
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
  z = (z ^ z >> 27) * 0x94D049BB133111EB;
  return z ^ z >> 31;
}

// An array inside a piece of memory that must not change around it.
class Array {
 public:
  Array(int64_t bytes, int64_t offset)
      : memory_(kGuard + offset + bytes + kGuard, kUntouched), first_(kGuard + offset), bytes_(bytes) {}

  uint8_t* data() { return memory_.data() + first_; }
  int64_t bytes() const { return bytes_; }

  void check_surroundings(const char* name) const {
    for (int64_t i = 0; i < static_cast<int64_t>(memory_.size()); ++i) {
      if ((i < first_ || i >= first_ + bytes_) && memory_[i] != kUntouched) {
        std::printf("error: %s was written at byte %ld of %ld\n", name, static_cast<long>(i - first_),
                    static_cast<long>(bytes_));
        std::exit(1);
      }
    }
  }

 private:
  std::vector<uint8_t> memory_;
  int64_t first_, bytes_;
};

constexpr uint64_t kHashStart = 0xCBF29CE484222325;

uint64_t hash(uint64_t start, Array& array) {  // FNV-1a
  for (int64_t i = 0; i < array.bytes(); ++i) start = (start ^ array.data()[i]) * 0x100000001B3;
  return start;
}

template <typename T>
void fill_with_numbers(uint8_t* data, int64_t n) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity(), kNan = std::numeric_limits<T>::quiet_NaN();
  constexpr T kTiny = std::numeric_limits<T>::denorm_min(), kLarge = std::numeric_limits<T>::max();
  const T specials[] = {0, T{-0.0}, kInfinity, -kInfinity, kNan, -kNan, kTiny, -kTiny, kLarge, -kLarge};
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t random = next_random();
    const T value =
        random % 8 == 0 ? specials[random / 8 % 10] : static_cast<T>(static_cast<int64_t>(random)) / T{1e18};
    std::memcpy(data + i * sizeof(T), &value, sizeof value);
  }
}

// Numbers about zero with specials among them, or (halves always) any bits at all: every kind of NaN and subnormal.
void fill(Array& array, int dtype, bool any_bits) {
  const int64_t n = array.bytes() / kDtypeSizes[dtype];
  if (dtype == 0 && !any_bits) return fill_with_numbers<float>(array.data(), n);
  if (dtype == 1 && !any_bits) return fill_with_numbers<double>(array.data(), n);
  for (int64_t i = 0; i < array.bytes(); ++i) array.data()[i] = static_cast<uint8_t>(next_random() >> 56);
}

void run(const Case& c) {
  const int64_t size = kDtypeSizes[c.dtype], offset = c.offset * size;
  const auto dtype = static_cast<DType>(c.dtype);
  Array x(c.n * size, offset), y(c.n * size, offset), dy(c.n * size, offset), dx(c.n * size, offset);
  Array keep((c.n + 7) / 8, c.offset), stats(c.rows * static_cast<int64_t>(sizeof(Stats)), 0);
  fill(x, c.dtype, c.offset == 3);
  fill(dy, c.dtype, c.offset == 3);
  Settings settings{};
  settings.p = c.sampled ? -1.0 : c.p;
  settings.sigma = 0.2;
  settings.p_min = 0.01;
  settings.p_max = 0.6;
  settings.rate_cap = c.p > 0.9 ? 1.0 : 0.95;
  settings.alpha = 0.75;
  settings.normalize = c.normalize;
  settings.relu = c.relu;
  const uint64_t seed = next_random();
  auto* rows = reinterpret_cast<Stats*>(stats.data());
  jumpout_forward_cpu(x.data(), y.data(), keep.data(), rows, seed, c.n, c.rows, dtype, settings, c.threads);
  jumpout_backward_cpu(dy.data(), keep.data(), rows, dx.data(), c.n, c.rows, dtype, c.threads);
  jumpout_forward_cpu(x.data(), x.data(), keep.data(), rows, seed, c.n, c.rows, dtype, settings, c.threads);

  std::printf("%s n=%ld rows=%ld offset=%ld relu=%d p=%g normalize=%d threads=%d", kDtypeNames[c.dtype],
              static_cast<long>(c.n), static_cast<long>(c.rows), static_cast<long>(c.offset), c.relu, settings.p,
              c.normalize, c.threads);
  if (std::memcmp(x.data(), y.data(), static_cast<size_t>(y.bytes())) != 0) {
    std::printf("\nerror: in place differs from a fresh output\n");
    std::exit(1);
  }
  uint64_t digest = kHashStart;
  for (Array* array : {&y, &keep, &stats, &dx}) digest = hash(digest, *array);
  x.check_surroundings("x");
  y.check_surroundings("y");
  dx.check_surroundings("dx");
  keep.check_surroundings("keep_bits");
  stats.check_surroundings("stats");
  std::printf(" %016llx\n", static_cast<unsigned long long>(digest));
}

void run_all() {
  const double rates[] = {0.3, 0.0, 0.7, 0.95, 0.05};  // 0.95: p / q above one, the largest threshold
  std::vector<int64_t> sizes = {1134, 65537};
  for (int64_t n = 0; n <= 200; ++n) sizes.push_back(n);
  int number = 0;
  for (const int64_t n : sizes) {
    for (const int64_t rows : {1, 2, 3, 7}) {
      if (n % rows != 0) continue;
      for (const int64_t offset : {0, 1, 3}) {
        for (int dtype = 0; dtype < 4; ++dtype) {
          for (const bool relu : {false, true}) {
            run({dtype, n, rows, offset, relu, number % 4 == 3, number % 7 != 6, rates[number % 5], 1 + number % 3});
            ++number;
          }
        }
      }
    }
  }
}

// The same run with the count in the same pass and results written past the caches, where those are aligned.
void check_ways(DType dtype, Array& x, Array& y, Array& keep, Array& dx, ForwardRun run, int64_t active) {
  const CpuKernels& kernels = select_cpu_kernels();
  for (int64_t offset = 0; offset < 64; offset += 16) {  // one of which is aligned for all kernels
    Array again(y.bytes(), offset), bits(keep.bytes(), 0);
    run.count = run.stream = true;
    const int64_t counted = kernels.forward(dtype, x.data(), again.data(), bits.data(), run);
    bool same = counted == active && std::memcmp(again.data(), y.data(), static_cast<size_t>(y.bytes())) == 0 &&
                std::memcmp(bits.data(), keep.data(), static_cast<size_t>(keep.bytes())) == 0;
    again.check_surroundings("y");
    kernels.backward(dtype, x.data(), bits.data(), again.data(), run.blocks, 1.75, true);
    same = same && std::memcmp(again.data(), dx.data(), static_cast<size_t>(dx.bytes())) == 0;
    again.check_surroundings("dx");
    if (!same) {
      std::printf("error: counting in the same pass or writing past the caches gives other bits\n");
      std::exit(1);
    }
  }
}

// What the op's own arguments do not reach: positions from 2^35 on, where a block's number no longer fits one counter
// word, and scales of few bits, whose products are often halfway between two halves; every half there is.
void run_kernels() {
  const CpuKernels& kernels = select_cpu_kernels();
  const int64_t blocks = 65536 / kBlock + 5;
  for (int type = 0; type < 4; ++type) {
    const auto dtype = static_cast<DType>(type);
    const int64_t bytes = blocks * kBlock * kDtypeSizes[type];
    for (const int64_t first : {(int64_t{1} << 32) - 11, int64_t{1} << 32, (int64_t{5} << 40) + 3}) {
      Array x(bytes, 0), y(bytes, 0), dx(bytes, 0), keep(blocks, 0);
      fill(x, type, false);
      for (int64_t i = 0; type >= 2 && i < blocks * kBlock; ++i) {
        const auto half = static_cast<uint16_t>(i);
        std::memcpy(x.data() + 2 * i, &half, sizeof half);
      }
      ForwardRun run{};
      run.seed = next_random();
      run.first_block = first;
      run.blocks = blocks;
      run.threshold = 10000;
      run.scale = 1.25;
      run.relu = first % 2 != 0;
      kernels.forward(dtype, x.data(), y.data(), keep.data(), run);
      kernels.backward(dtype, x.data(), keep.data(), dx.data(), blocks, 1.75, false);
      const int64_t active = kernels.count_active(dtype, x.data(), blocks * kBlock);
      check_ways(dtype, x, y, keep, dx, run, active);
      const uint64_t digest = hash(hash(hash(kHashStart, y), keep), dx);
      std::printf("%s first_block=%lld relu=%d active=%lld %016llx\n", kDtypeNames[type], static_cast<long long>(first),
                  run.relu, static_cast<long long>(active), static_cast<unsigned long long>(digest));
    }
  }
}

}  // namespace

int main() {
  try {
    select_cpu_kernels();
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 3;
  }
  run_all();
  run_kernels();
}
