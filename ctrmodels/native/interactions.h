// Interactions: products of fields by slot.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "combinations.h"
#include "common.h"
#include "pulls.h"
#include "tiles.h"

namespace {

// Fields, perhaps by places, perhaps weights [M, D] or [M, 1], and slots int64 [p, M], the p different fields of every
// combination: the sum over d of weights[m, d] times the product over s of fields[b, slots[s, m], d], into M columns of
// result [B, N] from `column` on. kLanes rows at a time, side by side.
void products(const Tensor& fields, const std::optional<Tensor>& places, const std::optional<Tensor>& weights,
              const Tensor& slots, const Tensor& result, int64_t column) {
  const Combinations of(fields, places, weights, slots);
  check(result, at::kFloat, 2, "result");
  const int64_t b = of.fields.b, stride = result.size(1);
  TORCH_CHECK(result.size(0) == b && column >= 0 && column + of.m <= stride, "shapes do not fit");
  float* out = result.mutable_data_ptr<float>() + column;
  const Tiles rows(of);
  at::parallel_for(0, rows.parts, 1, [&](int64_t begin, int64_t end) {
    Tile sums(of.m);
    for (int64_t part = begin; part < end; ++part)
      rows.of_part(part, [&](int64_t first, const auto& take, const Lanes*) {
        take([&](int64_t k, Lanes sum) { sums.values[k] = of.weighted == 1 ? sum * of.weights[k] : sum; });
        sums.store(out + first * stride, stride, std::min(kLanes, b - first));
      });
  });
}

// gradient [B, N] of the result, the other arguments of products(), and begins of group() with places -> the gradients of
// fields, and of weights or nothing.
std::tuple<Tensor, Tensor> products_backward(const Tensor& gradient, int64_t column, const Tensor& fields,
                                             const std::optional<Tensor>& places, const std::optional<Tensor>& begins,
                                             const std::optional<Tensor>& weights, const Tensor& slots) {
  const Combinations of(fields, places, weights, slots);
  check(gradient, at::kFloat, 2, "gradient");
  const int64_t b = of.fields.b, stride = gradient.size(1);
  TORCH_CHECK(gradient.size(0) == b && column >= 0 && column + of.m <= stride, "shapes do not fit");
  const float* from = gradient.const_data_ptr<float>() + column;
  const Tiles rows(of);
  const bool numbers = of.weighted == 1;
  std::vector<std::vector<Lanes>> sums(rows.parts, std::vector<Lanes>(numbers ? of.m : 0));
  auto [of_fields, of_weights] = pull_parts(rows, fields, begins, [&](int64_t part, const auto& pull) {
    Tile g(of.m);
    rows.of_part(part, [&](int64_t first, const auto& take, const Lanes* x) {
      g.load(from + first * stride, stride, std::min(kLanes, b - first));
      if (numbers)
        take([&](int64_t k, Lanes sum) {
          sums[part][k] += g.values[k] * sum;
          g.values[k] *= of.weights[k];
        });
      pull(first, x, g.values.data());
    });
  });
  if (numbers) {
    of_weights = at::empty({of.m, 1}, fields.options());
    const std::vector<Lanes> found = Tiles::added_up(sums);
    for (int64_t k = 0; k < of.m; ++k) of_weights.mutable_data_ptr<float>()[k] = static_cast<float>(sum_of(found[k]));
  }
  return {of_fields, of_weights};
}

}  // namespace
