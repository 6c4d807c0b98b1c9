// Searches' relaxations of touched rows: soft thresholds, and gates.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <bit>
#include <optional>
#include <tuple>

#include "common.h"
#include "layers.h"
#include "optimisers.h"

namespace {

// 1 / (1 + exp(-x)) within 2 units of the last place, 0 below -80, in operations that compilers do side by side: no branch.
float logistic(float x) {
  constexpr float kRound = 12582912.0f;  // above it a float has no fraction
  const float power = std::min(std::max(x, -80.0f), 80.0f) * -1.44269504f;
  const float whole = (power + kRound) - kRound, f = power - whole;
  const float fraction = 1.0f + f * (0.693147181f + f * (0.240226507f + f * (0.0555041087f + f * (
      0.00961812911f + f * (0.00133335581f + f * 0.000154035304f)))));
  const float y = 1.0f / (1.0f + fraction * std::bit_cast<float>((static_cast<int32_t>(whole) + 127) << 23));
  return y * static_cast<float>(x >= -80.0f);
}

// A row x [D] drawn towards zero by level = sigmoid(s), one of all values or one of each.
template <int64_t kWidth, bool kOne>
void draw_in(const float* __restrict__ x, const float* __restrict__ s, float* __restrict__ level, float* __restrict__ out,
             int64_t width) {
  const int64_t d = kWidth ? kWidth : width;
  for (int64_t j = 0; j < (kOne ? 1 : d); ++j) level[j] = logistic(s[j]);
  for (int64_t j = 0; j < d; ++j) {
    const float limit = level[kOne ? 0 : j];
    out[j] = x[j] - std::min(std::max(x[j], -limit), limit);
  }
}

// The gradient of such a row, where y is what it was drawn to: of x, and of s by value.
template <int64_t kWidth, bool kOne>
void push_back(const float* __restrict__ g, const float* __restrict__ y, const float* __restrict__ level,
               float* __restrict__ of_x, float* __restrict__ of_s, int64_t width) {
  const int64_t d = kWidth ? kWidth : width;
  for (int64_t j = 0; j < d; ++j) {
    const float limit = level[kOne ? 0 : j], kept = y[j] != 0.0f ? g[j] : 0.0f;
    of_x[j] = kept;
    of_s[j] = (y[j] > 0.0f ? -kept : kept) * (limit * (1.0f - limit));
  }
}

// The rows of soften(), where prepare brings the thresholds of a row to where they are read.
template <typename Prepare>
std::tuple<Tensor, Tensor> drawn_in(const Tensor& table, const Tensor& thresholds, const Tensor& rows,
                                    const Prepare& prepare) {
  check(table, at::kFloat, 2, "table");
  check(thresholds, at::kFloat, 2, "thresholds");
  check(rows, at::kLong, 1, "rows");
  const int64_t u = rows.numel(), d = table.size(1), height = table.size(0), w = thresholds.size(1);
  TORCH_CHECK(thresholds.size(0) == height && (w == d || w == 1), "shapes do not fit");
  const float *from = table.const_data_ptr<float>(), *by = thresholds.const_data_ptr<float>();
  const int64_t* row = rows.const_data_ptr<int64_t>();
  Tensor result = at::empty({u, d}, table.options()), level = at::empty({u, w}, table.options());
  float *to = result.mutable_data_ptr<float>(), *levels = level.mutable_data_ptr<float>();
  const auto draw = w == 1 ? draw_in<0, true> : d == 16 ? draw_in<16, false> : draw_in<0, false>;
  at::parallel_for(0, u, grain(2 * d), [&](int64_t begin, int64_t end) {
    Prepare mine = prepare;
    for (int64_t k = begin; k < end; ++k) {
      if (k + kAheadRows < end) {
        __builtin_prefetch(from + row[k + kAheadRows] * d);
        mine.fetch(row[k + kAheadRows]);
      }
      const int64_t r = row_at(row, k, height);
      mine(r);
      draw(from + r * d, by + r * w, levels + k * w, to + k * d, d);
    }
  });
  return {result, level};
}

// Soft thresholds: rows int64 [U] of table [V, D] drawn towards zero by level = sigmoid(thresholds), and not beyond it.
// thresholds are [V, D] or [V, 1], looked up by row. -> the rows [U, D], and their level.
std::tuple<Tensor, Tensor> soften(const Tensor& table, const Tensor& thresholds, const Tensor& rows) {
  struct Read {
    const float* by;
    int64_t width;
    void fetch(int64_t r) const { __builtin_prefetch(by + r * width); }
    void operator()(int64_t) const {}
  };
  check(thresholds, at::kFloat, 2, "thresholds");
  return drawn_in(table, thresholds, rows, Read{thresholds.const_data_ptr<float>(), thresholds.size(1)});
}

// The same by thresholds that coupled_adam() moves: those of the rows first make up the steps that they missed.
std::tuple<Tensor, Tensor> soften_late(const Tensor& table, const Tensor& thresholds, const Tensor& first,
                                       const Tensor& second, const Tensor& last, const Tensor& rows, double rate,
                                       double beta1, double beta2, double eps, double decay, int64_t step) {
  const CoupledAdam adam(thresholds, first, second, last, rate, beta1, beta2, eps, decay);
  std::tuple<Tensor, Tensor> found;
  adam.by_width([&](auto kWidth) {
    struct CatchUp {
      const CoupledAdam& adam;
      int64_t step;
      CoupledAdam::Fresh fresh;
      void fetch(int64_t r) const { adam.fetch(r); }
      void operator()(int64_t r) { adam.catch_up<decltype(kWidth)::value>(r, step, fresh); }
    };
    found = drawn_in(table, thresholds, rows, CatchUp{adam, step, {}});
  });
  return found;
}

// Its gradients, [U, D] each, where level = sigmoid(s): of the rows, and of s by value.
std::tuple<Tensor, Tensor> soften_backward(const Tensor& gradient, const Tensor& output, const Tensor& level) {
  check(gradient, at::kFloat, 2, "gradient");
  check(output, at::kFloat, 2, "output");
  check(level, at::kFloat, 2, "level");
  const int64_t u = output.size(0), d = output.size(1), w = level.size(1);
  TORCH_CHECK(gradient.sizes() == output.sizes() && level.size(0) == u && (w == d || w == 1), "shapes do not fit");
  Tensor of_rows = at::empty({u, d}, output.options()), of_level = at::empty({u, d}, output.options());
  const float *g = gradient.const_data_ptr<float>(), *y = output.const_data_ptr<float>(), *t = level.const_data_ptr<float>();
  float *pull = of_rows.mutable_data_ptr<float>(), *push = of_level.mutable_data_ptr<float>();
  const auto push_row = w == 1 ? push_back<0, true> : d == 16 ? push_back<16, false> : push_back<0, false>;
  at::parallel_for(0, u, grain(2 * d), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) push_row(g + k * d, y + k * d, t + k * w, pull + k * d, push + k * d, d);
  });
  return {of_rows, of_level};
}

// Both gradients where the rows were looked up by gather_flat(): from those of what that gave.
std::tuple<Tensor, Tensor> soften_flat_backward(const std::optional<Tensor>& flat, const std::optional<Tensor>& of_fields,
                                                const std::optional<Tensor>& of_pairs, const Tensor& output,
                                                const Tensor& sums, const Tensor& order, const Tensor& begins,
                                                const Tensor& level) {
  const FlatGradients gradients{flat, of_fields, of_pairs, output, sums, order, begins};
  check(level, at::kFloat, 2, "level");
  const int64_t u = gradients.u, d = gradients.d, w = level.size(1);
  TORCH_CHECK(gradients.by_row && level.size(0) == u && (w == d || w == 1), "shapes do not fit");
  Tensor of_rows = at::empty({u, d}, output.options()), of_level = at::empty({u, d}, output.options());
  const float *y = output.const_data_ptr<float>(), *t = level.const_data_ptr<float>();
  float *pull = of_rows.mutable_data_ptr<float>(), *push = of_level.mutable_data_ptr<float>();
  const auto push_row = w == 1 ? push_back<0, true> : d == 16 ? push_back<16, false> : push_back<0, false>;
  gradients.by_rows([=](int64_t k, const float* g) {
    if (k + kAheadRows < u) {  // so many streams run beside each other that processors foresee none
      __builtin_prefetch(y + (k + kAheadRows) * d);
      __builtin_prefetch(t + (k + kAheadRows) * w);
      __builtin_prefetch(pull + (k + kAheadRows) * d, 1);
      __builtin_prefetch(push + (k + kAheadRows) * d, 1);
    }
    push_row(g, y + k * d, t + k * w, pull + k * d, push + k * d, d);
  });
  return {of_rows, of_level};
}

// Rows x [U, D] times their gates: v drawn towards zero by level, of rows int64 [U] of the accumulators v [V, D]. -> the
// product, and the gates.
std::tuple<Tensor, Tensor> gate(const Tensor& x, const Tensor& accumulators, const Tensor& rows, double level) {
  check(x, at::kFloat, 2, "x");
  check(accumulators, at::kFloat, 2, "accumulators");
  check(rows, at::kLong, 1, "rows");
  const int64_t u = rows.numel(), d = x.size(1), height = accumulators.size(0);
  TORCH_CHECK(x.size(0) == u && accumulators.size(1) == d, "shapes do not fit");
  const float *from = x.const_data_ptr<float>(), *sums = accumulators.const_data_ptr<float>(),
              limit = static_cast<float>(level);
  const int64_t* row = rows.const_data_ptr<int64_t>();
  Tensor result = at::empty({u, d}, x.options()), gates = at::empty({u, d}, x.options());
  float *to = result.mutable_data_ptr<float>(), *factors = gates.mutable_data_ptr<float>();
  at::parallel_for(0, u, grain(3 * d), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      if (k + kAheadRows < end) __builtin_prefetch(sums + row[k + kAheadRows] * d);
      const float *v = sums + row_at(row, k, height) * d, *y = from + k * d;
      float *__restrict__ factor = factors + k * d, *__restrict__ out = to + k * d;
      for (int64_t j = 0; j < d; ++j) {
        factor[j] = v[j] - std::min(std::max(v[j], -limit), limit);
        out[j] = y[j] * factor[j];
      }
    }
  });
  return {result, gates};
}

}  // namespace
