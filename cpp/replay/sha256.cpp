// FIPS 180-4, sections 4 to 6.
#include "sha256.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <optional>
#include <vector>

#include "plain_file.h"

namespace jumpout::replay {
namespace {

constexpr size_t kBlock = 64;

using State = std::array<uint32_t, 8>;

// The first 32 bits of the fractional parts of the square roots of the first 8 primes,
constexpr State kStart = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

// and of the cube roots of the first 64.
constexpr std::array<uint32_t, kBlock> kRound = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

uint32_t rotated(uint32_t x, int by) { return x >> by | x << (32 - by); }

void add_block(State& state, const unsigned char* block) {
  std::array<uint32_t, kBlock> w;
  for (size_t t = 0; t < 16; ++t) {
    w[t] = uint32_t{block[4 * t]} << 24 | uint32_t{block[4 * t + 1]} << 16 | uint32_t{block[4 * t + 2]} << 8 |
           block[4 * t + 3];
  }
  for (size_t t = 16; t < kBlock; ++t) {
    const uint32_t a = w[t - 15], b = w[t - 2];
    w[t] =
        w[t - 16] + w[t - 7] + (rotated(a, 7) ^ rotated(a, 18) ^ a >> 3) + (rotated(b, 17) ^ rotated(b, 19) ^ b >> 10);
  }
  auto [a, b, c, d, e, f, g, h] = state;
  for (size_t t = 0; t < kBlock; ++t) {
    const uint32_t one =
        h + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + ((e & f) ^ (~e & g)) + kRound[t] + w[t];
    const uint32_t two = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    h = g;
    g = f;
    f = e;
    e = d + one;
    d = c;
    c = b;
    b = a;
    a = one + two;
  }
  const State more = {a, b, c, d, e, f, g, h};
  for (size_t i = 0; i < state.size(); ++i) state[i] += more[i];
}

}  // namespace

Sha256::Sha256() : state_(kStart), block_{} {}

void Sha256::add(std::string_view bytes) {
  bytes_ += bytes.size();
  while (!bytes.empty()) {
    const auto* start = reinterpret_cast<const unsigned char*>(bytes.data());
    if (filled_ == 0 && bytes.size() >= kBlock) {
      add_block(state_, start);
      bytes.remove_prefix(kBlock);
      continue;
    }
    const size_t count = std::min(kBlock - filled_, bytes.size());
    std::memcpy(block_.data() + filled_, start, count);
    filled_ += count;
    bytes.remove_prefix(count);
    if (filled_ == kBlock) {
      add_block(state_, block_.data());
      filled_ = 0;
    }
  }
}

std::string Sha256::hex() {
  // The end: one bit, zeros, and the length in bits in the last 8 bytes, in a block of their own if they do not fit.
  block_[filled_++] = 0x80;
  std::memset(block_.data() + filled_, 0, kBlock - filled_);
  if (filled_ > kBlock - 8) {
    add_block(state_, block_.data());
    block_.fill(0);
  }
  for (size_t i = 0; i < 8; ++i) block_[kBlock - 1 - i] = static_cast<unsigned char>(8 * bytes_ >> 8 * i);
  add_block(state_, block_.data());

  std::string text;
  for (const uint32_t word : state_) {
    char hex[9];
    std::snprintf(hex, sizeof(hex), "%08x", static_cast<unsigned>(word));
    text += hex;
  }
  return text;
}

std::string sha256_of(const std::filesystem::path& file) {
  constexpr size_t kPart = 1 << 16;
  PlainFile source(file);
  if (!source.is_open()) return "";
  Sha256 hash;
  std::vector<char> part(kPart);
  for (size_t filled = kPart; filled == kPart;) {
    const std::optional<size_t> read = source.read(part.data(), kPart);
    if (!read) return "";
    filled = *read;
    hash.add({part.data(), filled});
  }
  return hash.hex();
}

}  // namespace jumpout::replay
