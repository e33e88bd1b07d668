// The loops over a run, written once for all instruction sets and element types. An Isa provides
//   kBlocks                                   blocks of eight elements per tile
//   struct Keys; keys(seed)                   the round keys, ready to use
//   keep(keys, first_block, threshold)        keep bits of a tile, bit i for element i
//   count(const T* x)                         active elements of a tile, as int64
//   kAlign                                    bytes that y has to be aligned to for stores past the caches; 0: none
//   apply<relu, stream>(x, y, keep, scale)    y = keep ? x * scale : 0 on a tile; returns the bits that stayed
//   fence()                                   after the last store past the caches
// The blocks that are left over after the last tile take the scalar code.
#pragma once

#include <cstring>
#include <type_traits>

#include "cpu_kernels.h"
#include "half.h"

namespace jumpout {

template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

// `count` elements (at most eight) of one block; also the code for partial blocks.
template <typename T>
JUMPOUT_HD uint32_t apply_scalar(const T* x, T* y, uint32_t keep, Compute<T> scale, bool relu, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const Compute<T> value = widen(x[i]);
    if (relu && value <= 0) keep &= ~(1u << i);  // as torch's relu: NaN passes
    narrow(keep >> i & 1 ? value * scale : Compute<T>{0}, &y[i]);
  }
  return keep;
}

template <typename Isa, typename T>
JUMPOUT_HD int64_t count_run(const T* x, int64_t n) {
  constexpr int64_t kTile = Isa::kBlocks * kBlock;
  int64_t active = 0, i = 0;
  for (; i + kTile <= n; i += kTile) active += Isa::count(x + i);
  for (; i < n; ++i) active += widen(x[i]) > 0;  // false for NaN and -0
  return active;
}

template <typename Isa, typename T, bool kRelu, bool kStream>
JUMPOUT_HD int64_t forward_run(const T* x, T* y, uint8_t* keep_bits, const ForwardRun& run) {
  constexpr int64_t kTile = Isa::kBlocks * kBlock;
  const auto scale = static_cast<Compute<T>>(run.scale);
  const auto keys = Isa::keys(run.seed);
  int64_t block = 0, active = 0;
  for (; block + Isa::kBlocks <= run.blocks; block += Isa::kBlocks, x += kTile, y += kTile) {
    if (run.count) active += Isa::count(x);  // y may be x
    auto keep = Isa::keep(keys, run.first_block + block, run.threshold);
    keep = Isa::template apply<kRelu, kStream>(x, y, keep, scale);
    memcpy(keep_bits + block, &keep, sizeof keep);
  }
  for (; block < run.blocks; ++block, x += kBlock, y += kBlock) {
    if (run.count) active += count_run<Isa>(x, kBlock);
    const uint32_t keep = keep_byte(run.seed, run.first_block + block, run.threshold);
    keep_bits[block] = static_cast<uint8_t>(apply_scalar(x, y, keep, scale, kRelu, kBlock));
  }
  if constexpr (kStream) Isa::fence();
  return active;
}

template <typename Isa, typename T, bool kStream>
JUMPOUT_HD void backward_run(const T* dy, const uint8_t* keep_bits, T* dx, int64_t blocks, Compute<T> scale) {
  constexpr int64_t kTile = Isa::kBlocks * kBlock;
  int64_t block = 0;
  for (; block + Isa::kBlocks <= blocks; block += Isa::kBlocks, dy += kTile, dx += kTile) {
    typename Isa::Bits keep;
    memcpy(&keep, keep_bits + block, sizeof keep);
    Isa::template apply<false, kStream>(dy, dx, keep, scale);
  }
  for (; block < blocks; ++block, dy += kBlock, dx += kBlock) {
    apply_scalar(dy, dx, keep_bits[block], scale, false, kBlock);
  }
  if constexpr (kStream) Isa::fence();
}

// Whether a run may write `y` past the caches.
template <typename Isa>
bool streams(bool wanted, const void* y) {
  return Isa::kAlign > 0 && wanted && reinterpret_cast<uintptr_t>(y) % Isa::kAlign == 0;
}

// Calls work with a null pointer of the element type.
template <typename Work>
JUMPOUT_HD auto dispatch(DType dtype, const Work& work) {
  switch (dtype) {
    case DType::kFloat64:
      return work(static_cast<double*>(nullptr));
    case DType::kBFloat16:
      return work(static_cast<BFloat16*>(nullptr));
    case DType::kFloat16:
      return work(static_cast<Float16*>(nullptr));
    default:
      return work(static_cast<float*>(nullptr));
  }
}

// The table of one instruction set.
template <typename Isa>
constexpr CpuKernels make_kernels(const char* name) {
  return {
      name,
      [](DType dtype, const void* x, int64_t n) {
        return dispatch(
            dtype, [&](auto* type) { return count_run<Isa>(static_cast<decltype(type)>(const_cast<void*>(x)), n); });
      },
      [](DType dtype, const void* x, void* y, uint8_t* keep_bits, const ForwardRun& run) {
        return dispatch(dtype, [&](auto* type) {
          using T = std::remove_pointer_t<decltype(type)>;
          constexpr bool kStream = Isa::kAlign > 0;
          const auto function =
              streams<Isa>(run.stream, y)
                  ? (run.relu ? forward_run<Isa, T, true, kStream> : forward_run<Isa, T, false, kStream>)
                  : (run.relu ? forward_run<Isa, T, true, false> : forward_run<Isa, T, false, false>);
          return function(static_cast<const T*>(x), static_cast<T*>(y), keep_bits, run);
        });
      },
      [](DType dtype, const void* dy, const uint8_t* keep_bits, void* dx, int64_t blocks, double scale, bool stream) {
        dispatch(dtype, [&](auto* type) {
          using T = std::remove_pointer_t<decltype(type)>;
          const auto function =
              streams<Isa>(stream, dx) ? backward_run<Isa, T, (Isa::kAlign > 0)> : backward_run<Isa, T, false>;
          function(static_cast<const T*>(dy), keep_bits, static_cast<T*>(dx), blocks, static_cast<Compute<T>>(scale));
        });
      }};
}

}  // namespace jumpout
