// Philox-4x32 counter-based random numbers: 128 random bits from a 128-bit counter and a 64-bit key, without any state.
// Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Seven rounds are the fewest
// that pass BigCrush there (ten are their default, with margin); dropout masks need no more, and each round costs.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define JUMPOUT_HD __host__ __device__ __forceinline__
#else
// Internal linkage: these are compiled once per instruction set, and the linker must not merge the copies.
#define JUMPOUT_HD [[maybe_unused]] static inline
#endif

namespace jumpout {

constexpr int kPhiloxRounds = 7;
constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53, kPhiloxMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9, kPhiloxWeyl1 = 0xBB67AE85;

struct Philox {
  uint32_t word[4];
};

JUMPOUT_HD Philox philox(Philox counter, uint32_t key0, uint32_t key1, int rounds = kPhiloxRounds) {
  for (int round = 0; round < rounds; ++round) {
#if defined(__CUDA_ARCH__)
    // Of the 64-bit products below nvcc makes more instructions.
    const uint32_t high0 = __umulhi(kPhiloxMultiplier0, counter.word[0]), low0 = kPhiloxMultiplier0 * counter.word[0];
    const uint32_t high1 = __umulhi(kPhiloxMultiplier1, counter.word[2]), low1 = kPhiloxMultiplier1 * counter.word[2];
#else
    const uint64_t product0 = uint64_t{kPhiloxMultiplier0} * counter.word[0];
    const uint64_t product1 = uint64_t{kPhiloxMultiplier1} * counter.word[2];
    const uint32_t high0 = static_cast<uint32_t>(product0 >> 32), low0 = static_cast<uint32_t>(product0);
    const uint32_t high1 = static_cast<uint32_t>(product1 >> 32), low1 = static_cast<uint32_t>(product1);
#endif
    counter = {{high1 ^ counter.word[1] ^ key0, low1, high0 ^ counter.word[3] ^ key1, low0}};
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return counter;
}

// The last counter word keeps the streams of one seed apart.
enum class Stream : uint32_t { kKeep = 0, kRate = 1 };

JUMPOUT_HD Philox philox(uint64_t seed, uint64_t index, Stream stream) {
  return philox({{static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), 0, static_cast<uint32_t>(stream)}},
                static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

}  // namespace jumpout
