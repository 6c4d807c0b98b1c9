// Interactions, normalised over the batch and added up by their gates, of which nothing but the sums is written down.
//
// Of M combinations, x_bk as in products():
//   n_bk = (x_bk - mean_k) / sqrt(variance_k + eps_k),  y_b = sum_k gate_k n_bk.
// Every x is computed again by each of the passes over the rows, which is quicker than to read it.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "common.h"
#include "interactions.h"

namespace {

// Of lanes a and b: the sums of a's halves, then those of b's.
Lanes folded(Lanes a, Lanes b) {
  const auto halves = [&]<size_t... i>(std::index_sequence<i...>) {
    constexpr int64_t half = kLanes / 2;
    return __builtin_shufflevector(a, b, (i < half ? i : i + half)...) +
           __builtin_shufflevector(a, b, (i < half ? i + half : i + kLanes)...);
  };
  return halves(std::make_index_sequence<kLanes>());
}

// The rows of a batch, in tiles, and these in parts, which are as many on any machine.
struct Tiles {
  const Combinations& of;
  int64_t b, tiles, parts;

  Tiles(const Combinations& of_, int64_t b_)
      : of(of_), b(b_), tiles((b + kLanes - 1) / kLanes),
        parts(std::clamp<int64_t>(b * of.m * of.d / (64 * kGrain), 1, std::clamp<int64_t>(tiles, 1, 16))) {}

  // The values of a vector [B] that belong to the tile at row `first`, zero behind the last.
  Lanes at(const float* vector, int64_t first) const {
    Lanes values{};
    std::copy_n(vector + first, std::min(kLanes, b - first), reinterpret_cast<float*>(&values));
    return values;
  }

  // work(first, take, fields) of every tile of a part, from row `first` on: take(f) calls f(k, x) for all combinations.
  template <typename Work>
  void of_part(int64_t part, const Work& work) const {
    Tile x(of.f * of.d);
    std::vector<Lanes> room(2 * of.d);
    for (int64_t t = tiles * part / parts; t < tiles * (part + 1) / parts; ++t) {
      const int64_t first = t * kLanes, next = std::min(first + kLanes, b), last = std::min(next + kLanes, b);
      x.load(of.fields + first * of.stride, of.stride, next - first);
      const float *ahead = of.fields + next * of.stride, *stop = of.fields + last * of.stride;
      const auto take = [&](const auto& f) {
        each_sum(of, x.values.data(), room.data(), [&](int64_t k, Lanes sum) {
          if (ahead + k * kLanes < stop) __builtin_prefetch(ahead + k * kLanes, 0, 2);  // a line of the next tile
          f(k, sum);
        });
      };
      work(first, take, x.values.data());
    }
  }

  // add(first, take, sums) of every tile, to sums [M] of its part -> those of all parts, one after the other.
  template <typename Add>
  std::vector<Lanes> sums(const Add& add) const {
    std::vector<Lanes> found(parts * of.m);
    at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part)
        of_part(part, [&](int64_t first, const auto& take, const Lanes*) {
          add(first, take, found.data() + part * of.m);
        });
    });
    return found;
  }

  // Of what sums() gave, for combination k: the sum over the parts and the lanes from `begin` to `end`.
  double total(const std::vector<Lanes>& sums, int64_t k, int64_t begin, int64_t end) const {
    double found = 0.0;
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t l = begin; l < end; ++l) found += sums[part * of.m + k][l];
    return found;
  }
};

// Means and variances over the rows, [M]. In one pass, by sums of what exceeds the first tile's mean and of its square:
// "Algorithms for Computing the Sample Variance", The American Statistician 1983, on shifted data.
void moments(const Tiles& rows, float* means, float* variances) {
  const int64_t m = rows.of.m, count = std::min(kLanes, rows.b);
  std::vector<float> shift(m);
  const auto first_mean = [&](int64_t k, Lanes x) {
    for (int64_t l = 0; l < count; ++l) shift[k] += x[l] / count;
  };
  Tiles(rows.of, count).of_part(0, [&](int64_t, const auto& take, const Lanes*) { take(first_mean); });
  const std::vector<float> ones(rows.b, 1.0f);
  const std::vector<Lanes> sums = rows.sums([&](int64_t first, const auto& take, Lanes* sum) {
    const Lanes there = rows.at(ones.data(), first);
    take([&](int64_t k, Lanes x) {
      const Lanes above = x - shift[k] * there;
      sum[k] += folded(above, above * above);
    });
  });
  for (int64_t k = 0; k < m; ++k) {
    const double mean = rows.total(sums, k, 0, kLanes / 2) / rows.b;
    means[k] = static_cast<float>(shift[k] + mean);
    variances[k] = static_cast<float>(std::max(0.0, rows.total(sums, k, kLanes / 2, kLanes) / rows.b - mean * mean));
  }
}

void check_columns(const Combinations& of, std::initializer_list<Tensor> vectors) {
  for (const Tensor& t : vectors) {
    check(t, at::kFloat, 1, "a number per combination");
    TORCH_CHECK(t.numel() == of.m, "shapes do not fit");
  }
}

// fields, weights and slots of products(), gates [M] and eps [M] -> y [B], means [M], variances [M].
std::tuple<Tensor, Tensor, Tensor> gated_products(const Tensor& fields, const std::optional<Tensor>& weights,
                                                  const Tensor& slots, const Tensor& gates, const Tensor& eps) {
  const Combinations of(fields, weights, slots);
  check_columns(of, {gates, eps});
  const Tiles rows(of, fields.size(0));
  Tensor result = at::empty({rows.b}, gates.options());
  Tensor means = at::empty({of.m}, gates.options()), variances = at::empty({of.m}, gates.options());
  float *out = result.mutable_data_ptr<float>(), *mean = means.mutable_data_ptr<float>();
  float* variance = variances.mutable_data_ptr<float>();
  moments(rows, mean, variance);
  std::vector<float> scale(of.m);
  for (int64_t k = 0; k < of.m; ++k)
    scale[k] = gates.const_data_ptr<float>()[k] / std::sqrt(variance[k] + eps.const_data_ptr<float>()[k]);
  at::parallel_for(0, rows.parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part)
      rows.of_part(part, [&](int64_t first, const auto& take, const Lanes*) {
        Lanes sum{};
        take([&](int64_t k, Lanes x) { sum += scale[k] * (x - mean[k]); });
        std::copy_n(reinterpret_cast<const float*>(&sum), std::min(kLanes, rows.b - first), out + first);
      });
  });
  return {result, means, variances};
}

// gradient g [B] of y, its arguments, means and variances -> the gradients of fields, of weights or nothing, and of
// gates: sum_b g_b n_bk, and from what x_bk gets, gate_k (g_b - mean g - n_bk mean(g n_k)) / sqrt(variance_k + eps_k).
std::tuple<Tensor, Tensor, Tensor> gated_products_backward(const Tensor& gradient, const Tensor& fields,
                                                           const std::optional<Tensor>& weights, const Tensor& slots,
                                                           const Tensor& gates, const Tensor& eps, const Tensor& means,
                                                           const Tensor& variances) {
  const Combinations of(fields, weights, slots);
  check_columns(of, {gates, eps, means, variances});
  check(gradient, at::kFloat, 1, "gradient");
  const Tiles rows(of, fields.size(0));
  TORCH_CHECK(gradient.numel() == rows.b, "shapes do not fit");
  const float *g = gradient.const_data_ptr<float>(), *mean = means.const_data_ptr<float>();
  const std::vector<Lanes> pulls = rows.sums([&](int64_t first, const auto& take, Lanes* sum) {
    const Lanes own = rows.at(g, first);
    take([&](int64_t k, Lanes x) { sum[k] += own * (x - mean[k]); });
  });
  double average = 0.0;
  for (int64_t i = 0; i < rows.b; ++i) average += g[i] / rows.b;
  Tensor of_gates = at::empty({of.m}, gates.options()), of_fields = at::empty(fields.sizes(), fields.options());
  std::vector<float> scale(of.m), slope(of.m);
  for (int64_t k = 0; k < of.m; ++k) {
    const double inverse = 1.0 / std::sqrt(static_cast<double>(variances.const_data_ptr<float>()[k]) +
                                           eps.const_data_ptr<float>()[k]);
    const double of_gate = rows.total(pulls, k, 0, kLanes) * inverse;
    of_gates.mutable_data_ptr<float>()[k] = static_cast<float>(of_gate);
    scale[k] = static_cast<float>(gates.const_data_ptr<float>()[k] * inverse);
    slope[k] = static_cast<float>(scale[k] * inverse * of_gate / rows.b);
  }
  float* to = of_fields.mutable_data_ptr<float>();
  // work(first, gradients of all x, fields) of every tile of a part.
  const auto each_tile = [&](int64_t part, const auto& work) {
    std::vector<Lanes> of_x(of.m);
    rows.of_part(part, [&](int64_t first, const auto& take, const Lanes* fields_) {
      const Lanes own = rows.at(g, first) - static_cast<float>(average);
      take([&](int64_t k, Lanes x) { of_x[k] = scale[k] * own - slope[k] * (x - mean[k]); });
      work(first, of_x.data(), fields_);
    });
  };
  if (of.weighted)
    return {of_fields, pull_parts(of, rows.parts, fields.options(), [&](auto& pull, int64_t part) {
              each_tile(part, [&](int64_t first, const Lanes* of_x, const Lanes*) {
                for (int64_t i = first; i < std::min(first + kLanes, rows.b); ++i)
                  pull(i, to, [row = reinterpret_cast<const float*>(of_x) + (i - first)](int64_t k) {
                    return all(row[k * kLanes]);
                  });
              });
            }), of_gates};
  at::parallel_for(0, rows.parts, 1, [&](int64_t begin, int64_t end) {
    Tile y(of.f * of.d);
    std::vector<Lanes> room(2 * of.d);
    for (int64_t part = begin; part < end; ++part)
      each_tile(part, [&](int64_t first, const Lanes* of_x, const Lanes* x) {
        pull<0, false>(of, of.d, x, nullptr, room.data(), y.values.data(), nullptr, [&](int64_t k) { return of_x[k]; });
        y.store(to + first * y.width, y.width, std::min(kLanes, rows.b - first));
      });
  });
  return {of_fields, at::empty({0, 0}, fields.options()), of_gates};
}

}  // namespace
