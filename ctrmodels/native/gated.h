// Interactions, normalised over the batch and added up by their gates.
//
// Of M combinations, x_bk as in products():
//   n_bk = (x_bk - mean_k) / sqrt(variance_k + eps_k),  y_b = sum_k gate_k n_bk.
// Every x is computed once, and kept for the other passes over the rows as it is computed, tile after tile; those of short
// vectors are computed again, which is quicker than to read them.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_copy.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "combinations.h"
#include "common.h"
#include "pulls.h"
#include "tiles.h"

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

// What is kept of the combinations of a batch: float32 [tiles, M, kLanes], or nothing.
struct Kept {
  const Tiles& rows;
  Tensor values;

  explicit Kept(const Tiles& rows_)
      : rows(rows_), values(at::empty({rows.of.d < kShort ? 0 : rows.tiles, rows.of.m, kLanes}, at::kFloat)) {}
  Kept(const Tiles& rows_, const Tensor& values_) : rows(rows_), values(values_) {
    check(values, at::kFloat, 3, "what was kept");
    TORCH_CHECK(values.size(0) == (rows.of.d < kShort ? 0 : rows.tiles) && values.size(1) == rows.of.m &&
                    values.size(2) == kLanes,
                "shapes do not fit");
  }

  // The combinations of the tile at row `first`, as take() has them; room is for M.
  template <typename Take>
  const Lanes* of(int64_t first, const Take& take, Lanes* room) const {
    if (values.numel()) return at(first);
    take([room](int64_t k, Lanes x) { room[k] = x; });
    return room;
  }

  // Those combinations of the tile that `open` names, which take() has alone, into room.
  template <typename Take>
  void some(int64_t first, const Take& take, const std::vector<int64_t>& open, Lanes* room) const {
    if (!values.numel()) return take([room](int64_t i, Lanes x) { room[i] = x; });
    const Lanes* x = at(first);
    for (const int64_t k : open) *room++ = x[k];
  }

  // Where they are kept, if they are.
  Lanes* at(int64_t first) const {
    return reinterpret_cast<Lanes*>(values.mutable_data_ptr<float>()) + first / kLanes * rows.of.m;
  }

  // work(part, first, x) of every tile of every part, from row `first` on.
  template <typename Work>
  void each(const Work& work) const {
    at::parallel_for(0, rows.parts, 1, [&](int64_t begin, int64_t end) {
      std::vector<Lanes> room(rows.of.m);
      for (int64_t part = begin; part < end; ++part)
        if (values.numel())
          rows.each_tile(part, [&](int64_t first) { work(part, first, at(first)); });
        else
          rows.of_part(part, [&](int64_t first, const auto& take, const Lanes*) {
            work(part, first, of(first, take, room.data()));
          });
    });
  }

  // sum_k scale_k (x_bk - centre_k) of those k that `open` names -> out [B].
  void by_row(const std::vector<int64_t>& open, const float* scale, const float* centre, float* out) const {
    constexpr int64_t kSums = 4;  // that need not wait for each other
    each([=, this, &open, n = static_cast<int64_t>(open.size())](int64_t, int64_t first, const Lanes* x) {
      std::array<Lanes, kSums> sums{};
      for (int64_t i = 0; i < n; ++i) sums[i % kSums] += scale[open[i]] * (x[open[i]] - centre[open[i]]);
      const Lanes sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      std::copy_n(reinterpret_cast<const float*>(&sum), std::min(kLanes, rows.b - first), out + first);
    });
  }

  // sum_b scale_b x_bk, [M].
  std::vector<Lanes> by_combination(const float* scale) const {
    const int64_t m = rows.of.m;
    std::vector<std::vector<Lanes>> found(rows.parts, std::vector<Lanes>(m));
    each([&](int64_t part, int64_t first, const Lanes* x) {
      const Lanes own = rows.at(scale, first);
      for (int64_t k = 0; k < m; ++k) found[part][k] += own * x[k];
    });
    return Tiles::added_up(found);
  }

 private:
  static constexpr int64_t kShort = 4;
};

// Means and variances over the rows, [M]. In one pass, by sums of what exceeds the first tile's mean and of its square:
// "Algorithms for Computing the Sample Variance", The American Statistician 1983, on shifted data. Where
// kept has room, the interactions' values stay there.
void moments(const Tiles& rows, const Kept& kept, float* means, float* variances) {
  const int64_t m = rows.of.m, count = std::min(kLanes, rows.b);
  std::vector<float> shift(m);
  const auto first_mean = [&](int64_t k, Lanes x) {
    for (int64_t l = 0; l < count; ++l) shift[k] += x[l] / count;
  };
  Tiles(rows.of, count).of_part(0, [&](int64_t, const auto& take, const Lanes*) { take(first_mean); });
  const std::vector<Lanes> sums = rows.sums([&](int64_t first, const auto& take, Lanes* sum) {
    const Lanes there = rows.there(first);
    const auto add = [=, shift = shift.data()](int64_t k, Lanes x) {
      const Lanes above = x - shift[k] * there;
      sum[k] += folded(above, above * above);
    };
    if (!kept.values.numel()) return take(add);
    take([=, keep = kept.at(first)](int64_t k, Lanes x) {
      add(k, x);
      keep[k] = x;
    });
  });
  for (int64_t k = 0; k < m; ++k) {
    const double mean = sum_of(sums[k], 0, kLanes / 2) / rows.b;
    means[k] = static_cast<float>(shift[k] + mean);
    variances[k] = static_cast<float>(std::max(0.0, sum_of(sums[k], kLanes / 2) / rows.b - mean * mean));
  }
}

void check_columns(const Combinations& of, std::initializer_list<Tensor> vectors) {
  for (const Tensor& t : vectors) {
    check(t, at::kFloat, 1, "a number per combination");
    TORCH_CHECK(t.numel() == of.m, "shapes do not fit");
  }
}

// Combinations, of which numbers as weights are left out: what the gates see of them is the same but for eps, so that
// they belong to the gates.
struct Gated {
  const Combinations of;
  const float* numbers = nullptr;

  Gated(const Tensor& fields, const std::optional<Tensor>& places, const std::optional<Tensor>& weights,
        const Tensor& slots)
      : of(fields, places, weights && weights->size(1) > 1 ? weights : std::nullopt, slots) {
    if (!weights || of.weighted) return;
    check(*weights, at::kFloat, 2, "weights");
    TORCH_CHECK(weights->size(0) == of.m && weights->size(1) == 1, "shapes do not fit");
    numbers = weights->const_data_ptr<float>();
  }

  float number(int64_t k) const { return numbers ? numbers[k] : 1.0f; }
};

// Those combinations whose gate is not zero. The others give a row nothing, and get nothing but what their gate does.
std::vector<int64_t> open_ones(const std::vector<float>& scale) {
  std::vector<int64_t> open;
  for (size_t k = 0; k < scale.size(); ++k)
    if (scale[k] != 0.0f) open.push_back(static_cast<int64_t>(k));
  return open;
}

// fields, places, weights and slots of products(), gates [M] and eps [M] -> y [B], means [M], variances [M], and what
// the backward pass wants kept.
std::tuple<Tensor, Tensor, Tensor, Tensor> gated_products(const Tensor& fields, const std::optional<Tensor>& places,
                                                  const std::optional<Tensor>& weights, const Tensor& slots,
                                                  const Tensor& gates, const Tensor& eps) {
  const Gated gated(fields, places, weights, slots);
  const Combinations& of = gated.of;
  check_columns(of, {gates, eps});
  const Tiles rows(of);
  Tensor result = at::empty({rows.b}, gates.options());
  Tensor means = at::empty({of.m}, gates.options()), variances = at::empty({of.m}, gates.options());
  float *out = result.mutable_data_ptr<float>(), *mean = means.mutable_data_ptr<float>();
  float* variance = variances.mutable_data_ptr<float>();
  Kept kept(rows);
  moments(rows, kept, mean, variance);
  const std::vector<float> centre(mean, mean + of.m);
  std::vector<float> scale(of.m);
  for (int64_t k = 0; k < of.m; ++k) {
    const float number = gated.number(k);
    mean[k] *= number;
    variance[k] *= number * number;
    scale[k] = gates.const_data_ptr<float>()[k] * number / std::sqrt(variance[k] + eps.const_data_ptr<float>()[k]);
  }
  kept.by_row(open_ones(scale), scale.data(), centre.data(), out);
  return {result, means, variances, kept.values};
}

// gradient g [B] of y, its arguments, begins of group() with places, means, variances and what was kept -> the gradients
// of fields, of weights or nothing, and of gates. With c_b = g_b - mean g, and r_k = 1 / sqrt(variance_k + eps_k):
//   of gate_k  r_k sum_b c_b x_bk,
//   of x_bk    gate_k r_k (c_b - r_k (x_bk - mean_k) mean(c n_k)).
// A number among the weights gets gate_k eps_k r_k^3 sum_b c_b x_bk / number: normalisation leaves it no more.
std::tuple<Tensor, Tensor, Tensor> gated_products_backward(
    const Tensor& gradient, const Tensor& fields, const std::optional<Tensor>& places,
    const std::optional<Tensor>& begins, const std::optional<Tensor>& weights, const Tensor& slots, const Tensor& gates,
    const Tensor& eps, const Tensor& means, const Tensor& variances, const Tensor& kept_) {
  const Gated gated(fields, places, weights, slots);
  const Combinations& of = gated.of;
  check_columns(of, {gates, eps, means, variances});
  check(gradient, at::kFloat, 1, "gradient");
  const Tiles rows(of);
  TORCH_CHECK(gradient.numel() == rows.b, "shapes do not fit");
  const float* g = gradient.const_data_ptr<float>();
  const float average = static_cast<float>(std::accumulate(g, g + rows.b, 0.0) / rows.b);
  std::vector<float> centred(g, g + rows.b);
  for (float& c : centred) c -= average;
  const Kept kept(rows, kept_);
  const std::vector<Lanes> pulls = kept.by_combination(centred.data());
  Tensor of_gates = at::empty({of.m}, gates.options());
  Tensor of_numbers = at::empty({gated.numbers ? of.m : 0, 1}, gates.options());
  std::vector<float> scale(of.m), slope(of.m), level(of.m);  // what x gets is scale * c - slope * x + level
  for (int64_t k = 0; k < of.m; ++k) {
    const double gate = gates.const_data_ptr<float>()[k], eps_ = eps.const_data_ptr<float>()[k];
    const double pulled = sum_of(pulls[k]), number = gated.number(k);
    const double root = 1.0 / std::sqrt(variances.const_data_ptr<float>()[k] + eps_);
    const double of_gate = root * number * pulled, slope_ = gate * root * root * of_gate / rows.b;
    of_gates.mutable_data_ptr<float>()[k] = static_cast<float>(of_gate);
    const double of_number = gate * eps_ * root * root * root * pulled;
    if (gated.numbers) of_numbers.mutable_data_ptr<float>()[k] = static_cast<float>(of_number);
    scale[k] = static_cast<float>(gate * root * number);
    slope[k] = static_cast<float>(slope_ * number * number);
    level[k] = static_cast<float>(slope_ * number * means.const_data_ptr<float>()[k]);
  }
  const std::vector<int64_t> open = open_ones(scale);
  const Tensor chosen = at::tensor(open, slots.options()), open_slots = slots.index_select(1, chosen);
  std::optional<Tensor> open_weights;
  if (of.weighted) open_weights = weights->index_select(0, chosen);
  const Combinations pulling(fields, places, open_weights, open_slots);
  const Tiles pulled(pulling, rows);
  auto [of_fields, of_weights] = pull_parts(pulled, fields, begins, [&](int64_t part, const auto& pull) {
    std::vector<Lanes> x_open(pulling.m), of_x(pulling.m + 1);
    pulled.of_part(part, [&](int64_t first, const auto& take, const Lanes* x) {
      const Lanes own = rows.at(centred.data(), first), there = rows.there(first);
      kept.some(first, take, open, x_open.data());
      for (int64_t i = 0; i < pulling.m; ++i) {
        const int64_t k = open[i];
        of_x[i] = scale[k] * own + (level[k] * there - slope[k] * x_open[i]);
      }
      pull(first, x, of_x.data());
    });
  });
  if (of.weighted) of_weights = at::zeros({of.m, of.d}, of_weights.options()).index_copy_(0, chosen, of_weights);
  return {of_fields, gated.numbers ? of_numbers : of_weights, of_gates};
}

}  // namespace
