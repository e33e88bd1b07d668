// Every CUDA kernel against the CPU kernels, bit for bit: y, keep bits, statistics, dx, and the bytes around them. On
// the emulator, or compiled with nvcc on a device; needs neither Python nor torch. Prints the first differences on
// stderr and ends with 1 if there are any; a summary on stdout.
//   check [--seed N] [--one-in N] [--small] [--exact] [--large] [--workers N] | --refuse ERROR
// One case in N, chosen by the seed; --small: none of many thread blocks; --exact: see arrays.h. --refuse prints what
// is thrown where the emulated device refuses a launch with this number of cudaError_t; ends with 1 if the error stays.
#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "emulator.h"
#endif

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "arrays.h"
#include "jumpout_cpu.h"
#include "jumpout_cuda.h"

using namespace jumpout;

namespace {

constexpr DType kDtypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16};
const char* const kDtypeNames[] = {"float32", "float64", "bfloat16", "float16"};

struct Options {
  uint64_t seed = 1;
  uint64_t one_in = 1;
  int workers = 2;
  bool small = false, exact = false, large = false;
  int refuse = 0;
};

struct Setting {
  const char* name;
  Settings values;
};
// p, sigma, p_min, p_max, rate_cap, alpha, normalize, clip, relu; p < 0: sampled
const Setting kSettings[] = {
    {"sampled", {-1, 0.1, 0.01, 0.6, 0.95, 0.75, true, false, false}},
    {"constant", {0.3, 0.1, 0.01, 0.6, 0.95, 0.75, true, false, false}},
    {"relu", {-1, 0.3, 0.01, 0.6, 0.95, 0.75, true, false, true}},
    {"dropout", {0.4, 0.1, 0.0, 0.6, 1.0, 1.0, false, false, false}},
    {"clip and relu", {-1, 0.5, 0.05, 0.9, 0.9, 0.5, true, true, true}},
};

struct Size {
  int64_t n, rows;
};
// Around a pack of eight, what a warp takes at a time (256 elements, 1024 to count), a thread block (4096, 8192) and
// the four thread blocks of the emulated device; rows that are no multiple of eight, shorter than a pack, longer than
// what a warp counts, in parts, and more than there are thread blocks.
const Size kSizes[] = {
    {0, 1},        {1, 1},       {7, 1},         {8, 1},        {9, 1},    {15, 1},       {16, 1},       {17, 1},
    {63, 1},       {64, 1},      {65, 1},        {255, 1},      {256, 1},  {257, 1},      {2047, 1},     {2048, 1},
    {2049, 1},     {4095, 1},    {4096, 1},      {4097, 1},     {8191, 1}, {8192, 1},     {8193, 1},     {16384, 1},
    {16385, 1},    {40001, 1},   {0, 3},         {5, 5},        {10, 2},   {24, 3},       {35, 5},       {105, 5},
    {60, 60},      {645, 5},     {64 * 255, 64}, {3 * 1025, 3}, {5670, 5}, {2 * 4096, 2}, {3 * 4097, 3}, {2 * 16387, 2},
    {7 * 4099, 7}, {1 * 20, 20}, {9 * 90, 90},   {17 * 70, 70},
};

struct Case {
  DType dtype;
  Size size;
  Setting setting;
  size_t misalign;  // of x, y, dy and dx from an aligned address, in elements
  bool inplace;
  uint64_t seed;
  int device = 0;
};

long cases = 0, differences = 0;

void differ(const Case& c, const char* what, int64_t index) {
  if (++differences > 10) return;
  std::fprintf(stderr,
               "differs: %s at %" PRId64 ": %s, n %" PRId64 ", rows %" PRId64 ", offset %zu%s, %s, seed %016" PRIx64
               "\n",
               what, index, kDtypeNames[static_cast<int>(c.dtype)], c.size.n, c.size.rows, c.misalign,
               c.inplace ? ", in place" : "", c.setting.name, c.seed);
}

// Element for element of `size` bytes. A NaN equals a NaN where the dtype is given: which one an operation gives is not
// the same on all hardware.
void compare(const Case& c, const char* what, const Bytes& actual, const Bytes& expected, size_t size,
             const DType* dtype) {
  for (size_t i = 0; i < actual.size(); i += size) {
    if (std::memcmp(&actual[i], &expected[i], size) == 0) continue;
    if (dtype && std::isnan(value_at(*dtype, &actual[i])) && std::isnan(value_at(*dtype, &expected[i]))) continue;
    return differ(c, what, static_cast<int64_t>(i / size));
  }
}

void check_case(const Case& c, bool exact, std::mt19937_64& random) {
  const auto [n, rows] = c.size;
  const size_t size = size_of(c.dtype), offset = c.misalign * size;
  const Bytes x = numbers(c.dtype, n, 16, random), dy = numbers(c.dtype, n, 64, random);

  Bytes y(n * size), dx(n * size), keep((n + 7) / 8), stats(rows * sizeof(Stats));
  auto* rows_stats = reinterpret_cast<Stats*>(stats.data());
  jumpout_forward_cpu(x.data(), y.data(), keep.data(), rows_stats, c.seed, n, rows, c.dtype, c.setting.values, 1);
  jumpout_backward_cpu(dy.data(), keep.data(), rows_stats, dx.data(), n, rows, c.dtype, 1);

  const auto filled = [](const Bytes& like, uint8_t byte) { return Bytes(like.size(), byte); };
  Bytes seed(sizeof c.seed);
  std::memcpy(seed.data(), &c.seed, sizeof c.seed);
  DeviceArray x_there(x, offset, exact), y_there(filled(y, 0x5A), offset, exact), seed_there(seed, 0, exact);
  DeviceArray dy_there(dy, offset, exact), dx_there(filled(dx, 0x5A), offset, exact);
  DeviceArray keep_there(filled(keep, 0xFF), 0, exact), stats_there(filled(stats, 0xEE), 0, exact);
  DeviceArray scratch_there(Bytes(jumpout_scratch_cuda(n, rows, c.device) * sizeof(double), 0xEE), 0, exact);
  DeviceArray& y_at = c.inplace ? x_there : y_there;
  DeviceArray& dx_at = c.inplace ? dy_there : dx_there;
  jumpout_forward_cuda(x_there.at(), y_at.at(), keep_there.at<uint8_t>(), stats_there.at<Stats>(),
                       seed_there.at<uint64_t>(), scratch_there.at<double>(), n, rows, c.dtype, c.setting.values,
                       c.device, nullptr);
  jumpout_backward_cuda(dy_there.at(), keep_there.at<uint8_t>(), stats_there.at<Stats>(), dx_at.at(), n, rows, c.dtype,
                        c.device, nullptr);

  ++cases;
  bool intact = true;
  compare(c, "y", y_at.read(&intact), y, size, &c.dtype);
  compare(c, "keep bits", keep_there.read(&intact), keep, 1, nullptr);
  compare(c, "statistics", stats_there.read(&intact), stats, sizeof(double), nullptr);
  compare(c, "dx", dx_at.read(&intact), dx, size, &c.dtype);
  if (!c.inplace) {
    compare(c, "x, which is only read,", x_there.read(&intact), x, size, nullptr);
    compare(c, "dy, which is only read,", dy_there.read(&intact), dy, size, nullptr);
  }
  seed_there.read(&intact);
  scratch_there.read(&intact);
  if (!intact) differ(c, "bytes around an array", 0);
}

void check_all(const Options& options) {
  std::mt19937_64 random(options.seed);
  for (const DType dtype : kDtypes) {
    for (const Size& size : kSizes) {
      for (const Setting& setting : kSettings) {
        for (const size_t misalign : {0, 1, 3}) {
          if (random() % options.one_in != 0) continue;
          const bool inplace = random() % 2;
          check_case({dtype, size, setting, misalign, inplace, random()}, options.exact, random);
        }
      }
    }
  }
}

// A little more than one turn of as many thread blocks as fill the device, in one row and in few.
void check_many_blocks(const Options& options, int device) {
  std::mt19937_64 random(options.seed);
  constexpr int64_t kTurn = 80 * 256 * 4 * kBlock;  // of the emulated device, which has 80 thread blocks
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const int64_t rows : {1, 5}) {
      const Setting& setting = kSettings[random() % 5];
      const Size size{(kTurn + 2405) / rows * rows, rows};
      check_case({dtype, size, setting, 0, false, random(), device}, options.exact, random);
    }
  }
}

// More than a device is likely to have thread blocks for, in rows and in elements; takes minutes on the emulator.
void check_large(const Options& options) {
  std::mt19937_64 random(options.seed);
  const int64_t rows = (1 << 20) + 5;
  check_case({DType::kBFloat16, {rows * 3, rows}, kSettings[0], 0, false, random()}, options.exact, random);
  check_case({DType::kFloat32, {(1 << 26) + 3, 1}, kSettings[2], 1, true, random()}, options.exact, random);
  check_case({DType::kBFloat16, {8 * 4'000'003, 8}, kSettings[4], 0, false, random()}, options.exact, random);
}

#ifndef __CUDACC__
int report_refusal(int error) {
  cudaSetDevice(emulator::kDevices);  // an error of somebody else, which is not ours to report or to clear
  std::mt19937_64 random(1);
  const Case c{DType::kFloat32, {100, 1}, kSettings[0], 0, false, 1};
  check_case(c, false, random);
  if (cudaGetLastError() != cudaErrorInvalidDevice) return 1;
  emulator::next_launch = static_cast<cudaError_t>(error);
  try {
    check_case(c, false, random);
  } catch (const std::runtime_error& thrown) {
    std::printf("%s\n", thrown.what());
    return cudaPeekAtLastError() != cudaSuccess;
  }
  return 1;
}
#endif

Options parse(int count, char** arguments) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    const auto number = [&]() -> uint64_t { return ++i < count ? std::strtoull(arguments[i], nullptr, 10) : 0; };
    if (name == "--seed") {
      options.seed = number();
    } else if (name == "--one-in") {
      options.one_in = number();
    } else if (name == "--workers") {
      options.workers = static_cast<int>(number());
    } else if (name == "--refuse") {
      options.refuse = static_cast<int>(number());
    } else if (name == "--small") {
      options.small = true;
    } else if (name == "--large") {
      options.large = true;
    } else if (name == "--exact") {
      options.exact = true;
    } else {
      options.one_in = 0;
    }
  }
  if (options.one_in == 0 || options.workers < 1) {
    std::fprintf(stderr,
                 "usage: check [--seed N] [--one-in N] [--small] [--exact] [--large] [--workers N] | --refuse ERROR\n");
    std::exit(2);
  }
  return options;
}

}  // namespace

int main(int count, char** arguments) {
  const Options options = parse(count, arguments);
  int large = 0;
#ifndef __CUDACC__
  emulator::configure(options.seed, options.workers);
  if (options.refuse) {
    const int status = report_refusal(options.refuse);
    std::fflush(stdout);
    std::_Exit(status);
  }
  large = 1;
#endif
  check_all(options);
  if (!options.small) {
    must(cudaSetDevice(large), "cudaSetDevice");
    check_many_blocks(options, large);
  }
  if (options.large) {
    must(cudaSetDevice(0), "cudaSetDevice");
    check_large(options);
  }
  std::printf("%ld cases, %ld differences\n", cases, differences);
  std::fflush(stdout);
  std::_Exit(differences != 0);  // without waiting for the emulator's threads
}
