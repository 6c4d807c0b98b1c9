// Interactions: products of fields by slot.
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
using LanesAnywhere = float __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));

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

// The values of up to kLanes rows, one value of all rows after the other; rows that are not there are zero.
struct Tile {
  std::vector<Lanes> values;
  int64_t width;

  explicit Tile(int64_t width_) : values(whole(width_, kLanes)), width(width_) {}

  // count rows, which begin `stride` apart.
  void load(const float* rows, int64_t stride, int64_t count) {
    std::array<Lanes, kLanes> square;
    for (int64_t c = 0; c < width; c += kLanes) {
      if (count == kLanes && c + kLanes <= width) {
        for (int64_t r = 0; r < kLanes; ++r) square[r] = *at(rows + r * stride + c);
      } else {
        square = {};
        for (int64_t r = 0; r < count; ++r)
          std::memcpy(&square[r], rows + r * stride + c, std::min(kLanes, width - c) * sizeof(float));
      }
      transpose(square);
      for (int64_t j = 0; j < kLanes; ++j) values[c + j] = square[j];
    }
  }

  void store(float* rows, int64_t stride, int64_t count) const {
    std::array<Lanes, kLanes> square;
    for (int64_t c = 0; c < width; c += kLanes) {
      for (int64_t j = 0; j < kLanes; ++j) square[j] = values[c + j];
      transpose(square);
      if (count == kLanes && c + kLanes <= width) {
        for (int64_t r = 0; r < kLanes; ++r) *at(rows + r * stride + c) = square[r];
      } else {
        for (int64_t r = 0; r < count; ++r)
          std::memcpy(rows + r * stride + c, &square[r], std::min(kLanes, width - c) * sizeof(float));
      }
    }
  }

 private:
  static const LanesAnywhere* at(const float* values) { return reinterpret_cast<const LanesAnywhere*>(values); }
  static LanesAnywhere* at(float* values) { return reinterpret_cast<LanesAnywhere*>(values); }
};

// M combinations of p fields each, and weights [M, D] or [M, 1] of their products, if there are any. Neighbours of which
// all fields but the last are the same are a run: what the other fields make together is computed once for it. Where the
// last fields of the next run are the last ones of this one, as of all pairs in order, the two share what they read.
struct Combinations {
  struct Run {
    int64_t begin, end;
    bool shares = false;

    int64_t size() const { return end - begin; }
  };

  const int64_t* slots;  // [p, M]
  const float* weights = nullptr;
  const float* fields;   // row after row, `stride` apart
  int64_t p, m, f, d, stride, weighted = 0;  // weights per combination
  std::vector<Run> runs;

  Combinations(const Tensor& fields_, const std::optional<Tensor>& weights_, const Tensor& slots_)
      : p(slots_.size(0)), m(slots_.size(1)), f(fields_.size(1)), d(fields_.size(2)), stride(fields_.stride(0)) {
    TORCH_CHECK(fields_.device().is_cpu() && fields_.scalar_type() == at::kFloat && fields_.dim() == 3 &&
                    fields_.stride(2) == 1 && fields_.stride(1) == d,
                "the fields of a row have to lie side by side, in float32 on a CPU");
    fields = fields_.const_data_ptr<float>();
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
    for (size_t r = 0; r + 1 < runs.size(); ++r) {
      const int64_t* last = slots + (p - 1) * m;
      const Run& next = runs[r + 1];
      runs[r].shares = next.size() <= runs[r].size() &&
                       std::equal(last + next.begin, last + next.end, last + runs[r].end - next.size());
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

// Of a tile x: take(k, sum) of n combinations from each of begins on, whose other fields make heads and whose last fields
// are the same ones.
template <size_t kHeads, typename Take>
void sum_runs(const Combinations& of, const Lanes* x, const std::array<const Lanes*, kHeads>& heads,
              const std::array<int64_t, kHeads>& begins, int64_t n, const Take& take) {
  constexpr int64_t kBlock = 4;  // sums that need not wait for each other
  const int64_t* last = of.slots + (of.p - 1) * of.m + begins[0];
  for (int64_t k = 0; k < n; k += kBlock) {
    std::array<int64_t, kBlock> place;  // behind the last one, that one again
    std::array<const Lanes*, kBlock> tails;
    for (int64_t i = 0; i < kBlock; ++i) {
      place[i] = std::min(k + i, n - 1);
      tails[i] = x + last[place[i]] * of.d;
    }
    std::array<std::array<Lanes, kBlock>, kHeads> sums{};
    const auto add_up = [&](const auto& weighted) {
      for (int64_t j = 0; j < of.d; ++j)
        for (int64_t i = 0; i < kBlock; ++i) {
          const Lanes tail = tails[i][j];
          for (size_t h = 0; h < kHeads; ++h) sums[h][i] += weighted(heads[h][j], begins[h] + place[i], j) * tail;
        }
    };
    if (of.weighted > 1)
      add_up([&](Lanes head, int64_t m, int64_t j) { return head * of.weights[m * of.d + j]; });
    else
      add_up([](Lanes head, int64_t, int64_t) { return head; });
    for (size_t h = 0; h < kHeads; ++h)
      for (int64_t i = 0; i < std::min(kBlock, n - k); ++i) {
        const int64_t m = begins[h] + k + i;
        take(m, of.weighted == 1 ? sums[h][i] * of.weights[m] : sums[h][i]);
      }
  }
}

// Of a tile x: take(k, sum) of every combination; room is for 2 * D values.
template <typename Take>
void each_sum(const Combinations& of, const Lanes* x, Lanes* room, const Take& take) {
  for (size_t r = 0; r < of.runs.size(); ++r) {
    const Combinations::Run& run = of.runs[r];
    const Lanes* head = of.shared(x, run.begin, of.d, room);
    if (!run.shares) {
      sum_runs<1>(of, x, {head}, {run.begin}, run.size(), take);
      continue;
    }
    const Combinations::Run& next = of.runs[++r];
    const int64_t alone = run.size() - next.size();
    sum_runs<1>(of, x, {head}, {run.begin}, alone, take);
    sum_runs<2>(of, x, {head, of.shared(x, next.begin, of.d, room + of.d)}, {run.begin + alone, next.begin},
                next.size(), take);
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
  float* out = result.mutable_data_ptr<float>() + column;
  at::parallel_for(0, tiles, grain(kLanes * m * d), [&](int64_t begin, int64_t end) {
    Tile x(of.f * d), sums(m);
    std::vector<Lanes> room(2 * d);
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = t * kLanes, count = std::min(kLanes, b - first);
      x.load(of.fields + first * of.stride, of.stride, count);
      each_sum(of, x.values.data(), room.data(), [&](int64_t k, Lanes sum) { sums.values[k] = sum; });
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
    if (d % kLanes == 0)
      std::copy_n(vectors, n * d, row(0));
    else
      for (int64_t i = 0; i < n; ++i) std::copy_n(vectors + i * d, d, row(i));
  }
  void store(float* vectors) {
    if (d % kLanes == 0)
      std::copy_n(row(0), n * d, vectors);
    else
      for (int64_t i = 0; i < n; ++i) std::copy_n(row(i), d, vectors + i * d);
  }
};

// The gradient y of x, vectors of w registers, from that of their combinations: g(k), a register. Of weighted ones, also
// what their weights get, added to sums [M, w]. room is for 2 * w.
template <int64_t kWidth, bool kWeighted, typename Gradient>
void pull(const Combinations& of, int64_t w, const Lanes* x, const Lanes* weights, Lanes* room, Lanes* __restrict__ y,
          Lanes* __restrict__ sums, const Gradient& g) {
  constexpr int64_t kBlock = 8;
  if (kWidth) w = kWidth;
  const int64_t* last = of.slots + (of.p - 1) * of.m;
  std::fill(y, y + of.f * w, Lanes{});
  for (const Combinations::Run& run : of.runs) {
    const Lanes* head = of.shared(x, run.begin, w, room + w);
    int64_t j = 0;
    if constexpr (!kWeighted && kWidth == 0)
      for (; j + kBlock <= w; j += kBlock) {  // what all combinations add to stays in registers
        std::array<Lanes, kBlock> pulled{}, h;
        for (int64_t i = 0; i < kBlock; ++i) h[i] = head[j + i];
        for (int64_t k = run.begin; k < run.end; ++k) {
          const Lanes scale = g(k);
          const int64_t place = last[k] * w + j;
          for (int64_t i = 0; i < kBlock; ++i) {
            pulled[i] += scale * x[place + i];
            y[place + i] += scale * h[i];
          }
        }
        for (int64_t i = 0; i < kBlock; ++i) room[j + i] = pulled[i];
      }
    for (; j < w; ++j) {
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

// The weights of combinations in whole registers, one weight of each repeated.
Padded in_registers(const Combinations& of) {
  Padded weights(of.weighted ? of.m : 0, of.d);
  for (int64_t k = 0; k < weights.n; ++k)
    for (int64_t j = 0; j < of.d; ++j) weights.row(k)[j] = of.weights[k * of.weighted + (of.weighted > 1 ? j : 0)];
  return weights;
}

// pull() row after row, a vector's values side by side, from the gradients g(k) of row i to row i of result.
template <int64_t kWidth, bool kWeighted>
struct RowPull {
  const Combinations& of;
  const Padded& weights;
  Padded x, y;
  std::vector<Lanes> room, sums;  // what the weights get, of all rows so far

  RowPull(const Combinations& of_, const Padded& weights_)
      : of(of_), weights(weights_), x(of.f, of.d), y(x), room(2 * x.blocks), sums(weights.values.size()) {}

  template <typename Gradient>
  void operator()(int64_t i, float* result, const Gradient& g) {
    x.load(of.fields + i * of.stride);
    pull<kWidth, kWeighted>(of, x.blocks, x.values.data(), weights.values.data(), room.data(), y.values.data(),
                            sums.data(), g);
    y.store(result + i * of.f * of.d);
  }
};

// work(pull, part) of every part of the rows, with a RowPull of its own -> the gradient of the weights. The parts are
// as many on any machine.
template <int64_t kWidth, bool kWeighted, typename Work>
Tensor pull_parts(const Combinations& of, int64_t parts, const at::TensorOptions& options, const Work& work) {
  const Padded weights = in_registers(of);
  Padded total(weights.n, of.d);
  std::vector<std::vector<Lanes>> sums(parts);
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      RowPull<kWidth, kWeighted> pull(of, weights);
      work(pull, part);
      sums[part] = std::move(pull.sums);
    }
  });
  for (const std::vector<Lanes>& of_part : sums)
    for (size_t i = 0; i < of_part.size(); ++i) total.values[i] += of_part[i];
  Tensor result = at::zeros({total.n, of.weighted}, options);
  float* to = result.mutable_data_ptr<float>();
  for (int64_t k = 0; k < total.n; ++k)
    for (int64_t j = 0; j < of.d; ++j) to[k * of.weighted + (of.weighted > 1 ? j : 0)] += total.row(k)[j];
  return result;
}

// The same, for the vectors and weights that these are.
template <typename Work>
Tensor pull_parts(const Combinations& of, int64_t parts, const at::TensorOptions& options, const Work& work) {
  if (of.d <= kLanes)
    return of.weighted ? pull_parts<1, true>(of, parts, options, work) : pull_parts<1, false>(of, parts, options, work);
  return of.weighted ? pull_parts<0, true>(of, parts, options, work) : pull_parts<0, false>(of, parts, options, work);
}

// products_backward() of short vectors without weights: kLanes rows at a time, side by side.
void pull_tiles(const Combinations& of, const float* g, int64_t stride, float* result, int64_t b) {
  const int64_t tiles = (b + kLanes - 1) / kLanes, width = of.f * of.d;
  at::parallel_for(0, tiles, grain(kLanes * of.m * of.d), [&](int64_t begin, int64_t end) {
    Tile x(width), y(width), gradient(of.m);
    std::vector<Lanes> room(2 * of.d);
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = t * kLanes, count = std::min(kLanes, b - first);
      x.load(of.fields + first * of.stride, of.stride, count);
      gradient.load(g + first * stride, stride, count);
      pull<0, false>(of, of.d, x.values.data(), nullptr, room.data(), y.values.data(), nullptr,
                     [&](int64_t k) { return gradient.values[k]; });
      y.store(result + first * width, width, count);
    }
  });
}

// gradient [B, N] of the result, and the other arguments of products() -> the gradients of fields, and of weights or
// nothing.
std::tuple<Tensor, Tensor> products_backward(const Tensor& gradient, int64_t column, const Tensor& fields,
                                             const std::optional<Tensor>& weights, const Tensor& slots) {
  const Combinations of(fields, weights, slots);
  check(gradient, at::kFloat, 2, "gradient");
  const int64_t b = fields.size(0), stride = gradient.size(1);
  TORCH_CHECK(gradient.size(0) == b && column >= 0 && column + of.m <= stride, "shapes do not fit");
  Tensor of_fields = at::empty(fields.sizes(), fields.options());
  const float* g = gradient.const_data_ptr<float>() + column;
  float* to = of_fields.mutable_data_ptr<float>();
  if (!of.weighted && 2 * of.d <= kLanes) {
    pull_tiles(of, g, stride, to, b);
    return {of_fields, at::empty({0, 0}, fields.options())};
  }
  const int64_t parts = std::clamp<int64_t>(b * of.m * of.d / (64 * kGrain), 1, 16);
  return {of_fields, pull_parts(of, parts, fields.options(), [&](auto& pull, int64_t part) {
            for (int64_t i = b * part / parts; i < b * (part + 1) / parts; ++i)
              pull(i, to, [row = g + i * stride](int64_t k) { return all(row[k]); });
          })};
}

}  // namespace
