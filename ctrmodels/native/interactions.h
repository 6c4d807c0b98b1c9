// Interactions: products of fields by slot, and their gated normalisation.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

#include "common.h"

namespace {

constexpr int64_t kLanes = 16;  // rows that are computed at once
using Lanes = float __attribute__((vector_size(kLanes * sizeof(float))));

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
void transpose(std::array<Lanes, kLanes>& square) {
  for (int64_t i = 0; i < kLanes; ++i)
    if ((i & kStep) == 0) swap_halves<kStep>(square[i], square[i + kStep], std::make_index_sequence<kLanes>());
  if constexpr (kStep > 1) transpose<kStep / 2>(square);
}

// The values of up to kLanes rows, one value of all rows after the other; rows that are not there are zero.
struct Tile {
  std::vector<Lanes> values;
  int64_t width;

  explicit Tile(int64_t width_) : values(whole(width_, kLanes)), width(width_) {}

  // count rows, which begin `stride` apart.
  void load(const float* rows, int64_t stride, int64_t count) {
    each_square([&](std::array<Lanes, kLanes>& square, int64_t c, int64_t bytes) {
      square = {};
      for (int64_t r = 0; r < count; ++r) std::memcpy(&square[r], rows + r * stride + c, bytes);
      transpose(square);
      std::copy_n(square.begin(), kLanes, &values[c]);
    });
  }

  void store(float* rows, int64_t stride, int64_t count) const {
    each_square([&](std::array<Lanes, kLanes>& square, int64_t c, int64_t bytes) {
      std::copy_n(&values[c], kLanes, square.begin());
      transpose(square);
      for (int64_t r = 0; r < count; ++r) std::memcpy(rows + r * stride + c, &square[r], bytes);
    });
  }

 private:
  // Of kLanes columns from c on, as far as there are such.
  template <typename Move>
  void each_square(const Move& move) const {
    std::array<Lanes, kLanes> square;
    for (int64_t c = 0; c < width; c += kLanes) move(square, c, std::min(kLanes, width - c) * sizeof(float));
  }
};

// M combinations of p fields each, and weights [M, D] or [M, 1] of their products, if there are any. Neighbours of which
// all fields but the last are the same are a run: what the other fields make together is computed once for it.
struct Combinations {
  struct Run {
    int64_t begin, end;
  };

  const int64_t* slots;  // [p, M]
  const float* weights = nullptr;
  int64_t p, m, f, d, weighted = 0;  // weights per combination
  std::vector<Run> runs;

  Combinations(const Tensor& fields, const std::optional<Tensor>& weights_, const Tensor& slots_)
      : p(slots_.size(0)), m(slots_.size(1)), f(fields.size(1)), d(fields.size(2)) {
    check(fields, at::kFloat, 3, "fields");
    check(slots_, at::kLong, 2, "slots");
    TORCH_CHECK(p >= 2, "a combination has two fields or more");
    slots = slots_.const_data_ptr<int64_t>();
    for (int64_t k = 0; k < p * m; ++k) row_at(slots, k, f);
    if (weights_) {
      check(*weights_, at::kFloat, 2, "weights");
      weighted = weights_->size(1);
      TORCH_CHECK(weights_->size(0) == m && (weighted == d || weighted == 1), "shapes do not fit");
      weights = weights_->const_data_ptr<float>();
    }
    for (int64_t k = 0; k < m; ++k) {
      bool same = k > 0;
      for (int64_t s = 0; same && s + 1 < p; ++s) same = field(s, k) == field(s, k - 1);
      if (same)
        runs.back().end = k + 1;
      else
        runs.push_back({k, k + 1});
    }
  }

  // The field in place s of combination k.
  int64_t field(int64_t s, int64_t k) const { return slots[s * m + k]; }

  // What all fields but the last of combination k make together, w values of each of which x has one after the other.
  const Lanes* shared(const Lanes* x, int64_t k, int64_t w, Lanes* room) const {
    if (p == 2) return x + field(0, k) * w;
    for (int64_t j = 0; j < w; ++j) {
      room[j] = x[field(0, k) * w + j];
      for (int64_t s = 1; s + 1 < p; ++s) room[j] *= x[field(s, k) * w + j];
    }
    return room;
  }
};

// Of a tile x: the sum of every combination, to sums [M]; room is for D values.
template <int64_t kWidth>
void sum_tile(const Combinations& of, const Lanes* x, Lanes* room, Lanes* sums) {
  const int64_t d = kWidth ? kWidth : of.d;
  const int64_t* last = of.slots + (of.p - 1) * of.m;
  for (const Combinations::Run& run : of.runs) {
    const Lanes* head = of.shared(x, run.begin, d, room);
    for (int64_t k = run.begin; k < run.end; ++k) {
      const Lanes* tail = x + last[k] * d;
      const float* weight = of.weights + k * of.weighted;
      Lanes sum{};
      if (of.weighted > 1)
        for (int64_t j = 0; j < d; ++j) sum += head[j] * tail[j] * weight[j];
      else
        for (int64_t j = 0; j < d; ++j) sum += head[j] * tail[j];
      sums[k] = of.weighted == 1 ? sum * weight[0] : sum;
    }
  }
}

// fields [B, F, D], perhaps weights [M, D] or [M, 1], and slots int64 [p, M], the p different fields of every combination:
// the sum over d of weights[m, d] times the product over s of fields[b, slots[s, m], d], into M columns of result [B, N]
// from `column` on. kLanes rows at a time, side by side.
void products(const Tensor& fields, const std::optional<Tensor>& weights, const Tensor& slots, const Tensor& result,
              int64_t column) {
  const Combinations of(fields, weights, slots);
  check(result, at::kFloat, 2, "result");
  const int64_t b = fields.size(0), m = of.m, d = of.d, stride = result.size(1), tiles = (b + kLanes - 1) / kLanes;
  TORCH_CHECK(result.size(0) == b && column >= 0 && column + m <= stride, "shapes do not fit");
  const float* from = fields.const_data_ptr<float>();
  float* out = result.mutable_data_ptr<float>() + column;
  const auto work = d == 16 ? sum_tile<16> : sum_tile<0>;
  at::parallel_for(0, tiles, grain(kLanes * m * d), [&](int64_t begin, int64_t end) {
    Tile x(of.f * d), sums(m);
    std::vector<Lanes> room(d);
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = t * kLanes, count = std::min(kLanes, b - first);
      x.load(from + first * x.width, x.width, count);
      work(of, x.values.data(), room.data(), sums.values.data());
      sums.store(out + first * stride, stride, count);
    }
  });
}

// Vectors [N, D] in whole registers, filled up with zeros.
struct Padded {
  int64_t n, d, blocks;
  std::vector<Lanes> values;

  Padded(int64_t n_, int64_t d_) : n(n_), d(d_), blocks(whole(d_, kLanes) / kLanes), values(n_ * blocks) {}
  float* row(int64_t i) { return reinterpret_cast<float*>(&values[i * blocks]); }
  void load(const float* vectors) {
    for (int64_t i = 0; i < n; ++i) std::copy_n(vectors + i * d, d, row(i));
  }
  void store(float* vectors) {
    for (int64_t i = 0; i < n; ++i) std::copy_n(row(i), d, vectors + i * d);
  }
};

// The gradient y of x, vectors of w registers, from that of their combinations: g(k), a register. Of weighted ones, also
// what their weights get, added to sums [M, w]. room is for 2 * w.
template <int64_t kWidth, bool kWeighted, typename Gradient>
void pull(const Combinations& of, int64_t w, const Lanes* x, const Lanes* weights, Lanes* room, Lanes* __restrict__ y,
          Lanes* __restrict__ sums, const Gradient& g) {
  if (kWidth) w = kWidth;
  const int64_t* last = of.slots + (of.p - 1) * of.m;
  std::fill(y, y + of.f * w, Lanes{});
  for (const Combinations::Run& run : of.runs) {
    const Lanes* head = of.shared(x, run.begin, w, room + w);
    for (int64_t j = 0; j < w; ++j) {
      const Lanes h = head[j];
      std::array<Lanes, 4> pulled{};  // sums that need not wait for each other
      const auto add = [&](int64_t k, Lanes& sum) {
        const int64_t place = last[k] * w + j;
        Lanes scale = g(k);
        if (kWeighted) {
          sums[k * w + j] += scale * h * x[place];
          scale *= weights[k * w + j];
        }
        sum += scale * x[place];
        y[place] += scale * h;
      };
      int64_t k = run.begin;
      for (; k + 4 <= run.end; k += 4)
        for (int64_t i = 0; i < 4; ++i) add(k + i, pulled[i]);
      for (; k < run.end; ++k) add(k, pulled[0]);
      room[j] = (pulled[0] + pulled[1]) + (pulled[2] + pulled[3]);
    }
    for (int64_t s = 0; s + 1 < of.p; ++s)
      for (int64_t j = 0; j < w; ++j) {
        Lanes others = room[j];
        for (int64_t o = 0; o + 1 < of.p; ++o)
          if (o != s) others *= x[of.field(o, run.begin) * w + j];
        y[of.field(s, run.begin) * w + j] += others;
      }
  }
}

// products_backward() of short vectors without weights: kLanes rows at a time, side by side.
void pull_tiles(const Combinations& of, const float* g, int64_t stride, const float* fields, float* result, int64_t b) {
  const int64_t tiles = (b + kLanes - 1) / kLanes, width = of.f * of.d;
  at::parallel_for(0, tiles, grain(kLanes * of.m * of.d), [&](int64_t begin, int64_t end) {
    Tile x(width), y(width), gradient(of.m);
    std::vector<Lanes> room(2 * of.d);
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = t * kLanes, count = std::min(kLanes, b - first);
      x.load(fields + first * width, width, count);
      gradient.load(g + first * stride, stride, count);
      pull<0, false>(of, of.d, x.values.data(), nullptr, room.data(), y.values.data(), nullptr,
                     [&](int64_t k) { return gradient.values[k]; });
      y.store(result + first * width, width, count);
    }
  });
}

// products_backward() row after row, a vector's values side by side. A weight's gradient is summed over parts of the rows,
// which are as many on any machine.
template <int64_t kWidth, bool kWeighted>
Padded pull_rows(const Combinations& of, const float* g, int64_t stride, const float* fields, float* result, int64_t b) {
  const int64_t width = of.f * of.d, parts = std::clamp<int64_t>(b * of.m * of.d / (64 * kGrain), 1, 16);
  Padded weights(kWeighted ? of.m : 0, of.d), total = weights;
  for (int64_t k = 0; k < weights.n; ++k)
    for (int64_t j = 0; j < of.d; ++j) weights.row(k)[j] = of.weights[k * of.weighted + (of.weighted > 1 ? j : 0)];
  std::vector<std::vector<Lanes>> sums(parts, total.values);
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    Padded x(of.f, of.d), y = x;
    std::vector<Lanes> room(2 * x.blocks);
    for (int64_t part = begin; part < end; ++part)
      for (int64_t i = b * part / parts; i < b * (part + 1) / parts; ++i) {
        x.load(fields + i * width);
        pull<kWidth, kWeighted>(of, x.blocks, x.values.data(), weights.values.data(), room.data(), y.values.data(),
                                sums[part].data(), [row = g + i * stride](int64_t k) { return all(row[k]); });
        y.store(result + i * width);
      }
  });
  for (const std::vector<Lanes>& of_part : sums)
    for (size_t i = 0; i < of_part.size(); ++i) total.values[i] += of_part[i];
  return total;
}

// gradient [B, N] of the result, and the other arguments of products() -> the gradients of fields, and of weights or
// nothing.
std::tuple<Tensor, Tensor> products_backward(const Tensor& gradient, int64_t column, const Tensor& fields,
                                             const std::optional<Tensor>& weights, const Tensor& slots) {
  const Combinations of(fields, weights, slots);
  check(gradient, at::kFloat, 2, "gradient");
  const int64_t b = fields.size(0), stride = gradient.size(1);
  TORCH_CHECK(gradient.size(0) == b && column >= 0 && column + of.m <= stride, "shapes do not fit");
  Tensor of_fields = at::empty_like(fields), of_weights = at::zeros({of.weighted ? of.m : 0, of.weighted}, fields.options());
  const float *from = fields.const_data_ptr<float>(), *g = gradient.const_data_ptr<float>() + column;
  float *to = of_fields.mutable_data_ptr<float>(), *sums = of_weights.mutable_data_ptr<float>();
  if (!of.weighted && 2 * of.d <= kLanes) {
    pull_tiles(of, g, stride, from, to, b);
    return {of_fields, of_weights};
  }
  const bool one = of.d <= kLanes;
  const auto work = of.weighted ? (one ? pull_rows<1, true> : pull_rows<0, true>)
                                : (one ? pull_rows<1, false> : pull_rows<0, false>);
  Padded total = work(of, g, stride, from, to, b);
  for (int64_t k = 0; k < total.n; ++k)
    for (int64_t j = 0; j < of.d; ++j) sums[k * of.weighted + (of.weighted > 1 ? j : 0)] += total.row(k)[j];
  return {of_fields, of_weights};
}

// x [B, M], gates [M] and eps [M] -> [B], each column normalised over the rows and times its gate, summed; and the
// columns' means and variances [M].
std::tuple<Tensor, Tensor, Tensor> gated_norm(const Tensor& x, const Tensor& gates, const Tensor& eps) {
  check(x, at::kFloat, 2, "x");
  check(gates, at::kFloat, 1, "gates");
  check(eps, at::kFloat, 1, "eps");
  const int64_t b = x.size(0), m = x.size(1);
  TORCH_CHECK(gates.numel() == m && eps.numel() == m, "shapes do not fit");
  Tensor result = at::empty({b}, x.options()), means = at::empty({m}, x.options()), variances = at::empty({m}, x.options());
  const float *from = x.const_data_ptr<float>(), *gate = gates.const_data_ptr<float>(), *e = eps.const_data_ptr<float>();
  float *mean = means.mutable_data_ptr<float>(), *variance = variances.mutable_data_ptr<float>();
  sum_over_parts(b, m, mean, [&](int64_t i, float* __restrict__ sum) {
    const float* row = from + i * m;
    for (int64_t k = 0; k < m; ++k) sum[k] += row[k];
  });
  for (int64_t k = 0; k < m; ++k) mean[k] /= b;
  sum_over_parts(b, m, variance, [&](int64_t i, float* __restrict__ sum) {
    const float* row = from + i * m;
    for (int64_t k = 0; k < m; ++k) sum[k] += (row[k] - mean[k]) * (row[k] - mean[k]);
  });
  std::vector<float> weight(m);
  for (int64_t k = 0; k < m; ++k) {
    variance[k] /= b;
    weight[k] = gate[k] / std::sqrt(variance[k] + e[k]);
  }
  float* out = result.mutable_data_ptr<float>();
  at::parallel_for(0, b, grain(m), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::array<float, kLanes> sums{};
      const float* row = from + i * m;
      int64_t k = 0;
      for (; k + kLanes <= m; k += kLanes)
        for (int64_t l = 0; l < kLanes; ++l) sums[l] += (row[k + l] - mean[k + l]) * weight[k + l];
      for (; k < m; ++k) sums[0] += (row[k] - mean[k]) * weight[k];
      out[i] = std::accumulate(sums.begin(), sums.end(), 0.0f);
    }
  });
  return {result, means, variances};
}

// gradient [B] of the result, its arguments, means and variances -> the gradients of x and gates.
std::tuple<Tensor, Tensor> gated_norm_backward(const Tensor& gradient, const Tensor& x, const Tensor& gates,
                                               const Tensor& eps, const Tensor& means, const Tensor& variances) {
  check(gradient, at::kFloat, 1, "gradient");
  check(x, at::kFloat, 2, "x");
  const int64_t b = x.size(0), m = x.size(1);
  for (const Tensor& t : {gates, eps, means, variances}) TORCH_CHECK(t.numel() == m, "shapes do not fit");
  TORCH_CHECK(gradient.numel() == b, "shapes do not fit");
  Tensor of_x = at::empty_like(x), of_gates = at::empty({m}, x.options());
  const float *from = x.const_data_ptr<float>(), *g = gradient.const_data_ptr<float>(), *mean = means.const_data_ptr<float>();
  const float *gate = gates.const_data_ptr<float>(), *e = eps.const_data_ptr<float>(), *v = variances.const_data_ptr<float>();
  float *to = of_x.mutable_data_ptr<float>(), *of_gate = of_gates.mutable_data_ptr<float>();
  sum_over_parts(b, m, of_gate, [&](int64_t i, float* __restrict__ sum) {
    const float *row = from + i * m, scale = g[i];
    for (int64_t k = 0; k < m; ++k) sum[k] += scale * (row[k] - mean[k]);
  });
  double total = 0.0;
  for (int64_t i = 0; i < b; ++i) total += g[i];
  const float average = static_cast<float>(total / b);
  std::vector<float> weight(m), pull(m);
  for (int64_t k = 0; k < m; ++k) {
    const float inverse = 1.0f / std::sqrt(v[k] + e[k]);
    weight[k] = gate[k] * inverse;
    pull[k] = weight[k] * inverse * inverse * of_gate[k] / b;
    of_gate[k] *= inverse;
  }
  at::parallel_for(0, b, grain(m), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* row = from + i * m;
      float* __restrict__ out = to + i * m;
      const float scale = g[i] - average;
      for (int64_t k = 0; k < m; ++k) out[k] = weight[k] * scale - pull[k] * (row[k] - mean[k]);
    }
  });
  return {of_x, of_gates};
}

}  // namespace
