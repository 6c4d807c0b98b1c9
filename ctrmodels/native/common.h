// What all kernels share.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <vector>

namespace {

using at::BFloat16;
using at::Tensor;

// Look-ups, and rows to be changed, that are fetched ahead: a row has to arrive from memory before its turn comes.
constexpr int64_t kAhead = 64, kAheadRows = 24;
// Values that a thread should have at least, below which starting it costs more than it saves.
constexpr int64_t kGrain = 16384;

int64_t grain(int64_t width) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width)); }

void check(const Tensor& t, at::ScalarType type, int64_t dim, const char* name) {
  TORCH_CHECK(t.device().is_cpu() && t.is_contiguous() && t.scalar_type() == type && t.dim() == dim, name,
              " has to be a contiguous CPU tensor of type ", type, " with ", dim, " dimensions, not ", t.scalar_type(),
              t.sizes());
}

template <typename Index>
int64_t row_at(const Index* rows, int64_t k, int64_t height) {
  TORCH_CHECK_INDEX(rows[k] >= 0 && rows[k] < height, "row ", rows[k], " of a table of ", height);
  return rows[k];
}

// sums[w] = the sum over b rows of what add(row, sum) adds. The parts that are added up are as many on any machine.
template <typename Add>
void sum_over_parts(int64_t b, int64_t w, float* sums, const Add& add) {
  const int64_t parts = std::clamp<int64_t>(b * w / (4 * kGrain), 1, 16);
  std::vector<float> partial(parts * w);
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      for (int64_t i = b * p / parts; i < b * (p + 1) / parts; ++i) add(i, partial.data() + p * w);
  });
  std::fill(sums, sums + w, 0.0f);
  for (int64_t p = 0; p < parts; ++p)
    for (int64_t j = 0; j < w; ++j) sums[j] += partial[p * w + j];
}

}  // namespace
