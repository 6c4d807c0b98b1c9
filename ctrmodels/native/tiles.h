// Rows that are computed side by side.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace {

// Rows that are computed at once, those of one register: what takes several, compilers keep in memory. And how many of these
// the processor has.
#ifdef __AVX512F__
constexpr int64_t kLanes = 16, kRegisters = 32;
#elif defined(__AVX__)
constexpr int64_t kLanes = 8, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int64_t kLanes = 4, kRegisters = 32;
#else
constexpr int64_t kLanes = 4, kRegisters = 16;
#endif
using Lanes = float __attribute__((vector_size(kLanes * sizeof(float))));
using LanesAnywhere = float __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));

const LanesAnywhere& lanes_at(const float* values) { return *reinterpret_cast<const LanesAnywhere*>(values); }
LanesAnywhere& lanes_at(float* values) { return *reinterpret_cast<LanesAnywhere*>(values); }

Lanes all(float value) { return value - Lanes{}; }

int64_t whole(int64_t n, int64_t part) { return (n + part - 1) / part * part; }

template <int64_t kStep, size_t... i>
void swap_halves(Lanes& a, Lanes& b, std::index_sequence<i...>) {
  const Lanes low = __builtin_shufflevector(a, b, ((i & kStep) ? kLanes + i - kStep : i)...);
  b = __builtin_shufflevector(a, b, ((i & kStep) ? kLanes + i : i + kStep)...);
  a = low;
}

// Rows become columns, a bit of the row number after the other changing places with one of the column number.
template <int64_t kStep = kLanes / 2>
[[gnu::always_inline]] inline void transpose(std::array<Lanes, kLanes>& square) {
  for (int64_t i = 0; i < kLanes; ++i)
    if ((i & kStep) == 0) swap_halves<kStep>(square[i], square[i + kStep], std::make_index_sequence<kLanes>());
  if constexpr (kStep > 1) transpose<kStep / 2>(square);
}

// The values of up to kLanes rows, one value of all rows after the other, and a zero behind them; rows that are not
// there are zero.
struct Tile {
  std::vector<Lanes> values;
  int64_t width;

  explicit Tile(int64_t width_) : values(whole(width_ + 1, kLanes)), width(width_) {}

  // count rows, which begin `stride` apart.
  void load(const float* rows, int64_t stride, int64_t count) {
    load([=](int64_t r) { return rows + r * stride; }, 0, width, count);
  }

  // `n` values, from `first` on, of count rows, which begin at row(r).
  template <typename Row>
  void load(const Row& row, int64_t first, int64_t n, int64_t count) {
    std::array<Lanes, kLanes> square;
    for (int64_t c = 0; c < n; c += kLanes) {
      if (count == kLanes && c + kLanes <= n) {
        for (int64_t r = 0; r < kLanes; ++r) square[r] = lanes_at(row(r) + c);
      } else {
        square = {};
        for (int64_t r = 0; r < count; ++r)
          std::memcpy(&square[r], row(r) + c, std::min(kLanes, n - c) * sizeof(float));
      }
      transpose(square);
      for (int64_t j = 0; j < kLanes; ++j) values[first + c + j] = square[j];
    }
  }

  void store(float* rows, int64_t stride, int64_t count) const {
    std::array<Lanes, kLanes> square;
    for (int64_t c = 0; c < width; c += kLanes) {
      for (int64_t j = 0; j < kLanes; ++j) square[j] = values[c + j];
      transpose(square);
      if (count == kLanes && c + kLanes <= width) {
        for (int64_t r = 0; r < kLanes; ++r) lanes_at(rows + r * stride + c) = square[r];
      } else {
        for (int64_t r = 0; r < count; ++r)
          std::memcpy(rows + r * stride + c, &square[r], std::min(kLanes, width - c) * sizeof(float));
      }
    }
  }
};

}  // namespace
