// Rows in several widths at once: every candidate is brought to a common width by a linear map of its id space,
// normalised there, squashed and mixed.
//
// Notation: S id spaces, whose rows lie one after the other among the U of a batch, N candidates, which lie side by side
// in the first I of a row's W values, D common width. Spaces that do not take part keep the first D values of their rows.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "common.h"
#include "id_spaces.h"
#include "relaxations.h"

namespace {

float squashed(float x) { return 2.0f * logistic(2.0f * x) - 1.0f; }

// What all operations below go through: the rows, in parts of one space each.
struct Widths {
  std::vector<Chunk> parts;
  const bool* takes;
  int64_t u, spaces, count, d;

  int64_t wide() const { return count * d; }

  void check_statistics(const Tensor& mean, const Tensor& variance) const {
    check(mean, at::kFloat, 2, "mean");
    check(variance, at::kFloat, 2, "variance");
    TORCH_CHECK(mean.size(0) == spaces && mean.size(1) == wide() && variance.sizes() == mean.sizes(), "shapes do not fit");
  }

  // work(number, part) for all of them; which rows are in a part does not depend on the number of threads.
  template <typename Work>
  void each(const Work& work) const {
    at::parallel_for(0, static_cast<int64_t>(parts.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) work(p, parts[p]);
    });
  }

  // work(width), which is D where compilers shall know it, else 0.
  template <typename Work>
  void by_width(const Work& work) const {
    d == 16 ? work(std::integral_constant<int64_t, 16>()) : work(std::integral_constant<int64_t, 0>());
  }
};

Widths widths_of(int64_t u, const Tensor& cuts, const Tensor& takes, int64_t count, int64_t d) {
  check(takes, at::kBool, 1, "takes");
  std::vector<Chunk> parts = chunks(cuts);
  TORCH_CHECK(count > 0 && takes.numel() + 1 == cuts.numel() && u == (parts.empty() ? 0 : parts.back().end),
              "shapes do not fit");
  return {std::move(parts), takes.const_data_ptr<bool>(), u, takes.numel(), count, d};
}

// kColumns of x [I] times a matrix [I, D].
template <int64_t kColumns>
void times_columns(const float* __restrict__ x, const float* __restrict__ matrix, int64_t inner, float* __restrict__ to,
                   int64_t d) {
  float sum[kColumns] = {};  // in registers
  for (int64_t i = 0; i < inner; ++i)
#pragma omp simd
    for (int64_t j = 0; j < kColumns; ++j) sum[j] += x[i] * matrix[i * d + j];
  std::copy(sum, sum + kColumns, to);
}

void times(const float* x, const float* matrix, int64_t inner, float* to, int64_t d) {
  int64_t j = 0;
  for (; j + 16 <= d; j += 16) times_columns<16>(x, matrix + j, inner, to + j, d);
  for (; j + 4 <= d; j += 4) times_columns<4>(x, matrix + j, inner, to + j, d);
  for (; j < d; ++j) times_columns<1>(x, matrix + j, inner, to + j, d);
}

// x [I] times g [D], added to a matrix [I, D].
template <int64_t kWidth>
void add_outer(const float* __restrict__ x, const float* __restrict__ g, int64_t inner, float* __restrict__ matrix,
               int64_t width) {
  const int64_t d = kWidth ? kWidth : width;
  for (int64_t i = 0; i < inner; ++i)
#pragma omp simd
    for (int64_t j = 0; j < d; ++j) matrix[i * d + j] += x[i] * g[j];
}

// Maps of one space, every candidate's [w, D] turned to [D, w].
std::vector<float> turned(const float* map, at::IntArrayRef widths, int64_t d) {
  std::vector<float> found;
  for (const int64_t w : widths) {
    for (int64_t j = 0; j < d; ++j)
      for (int64_t i = 0; i < w; ++i) found.push_back(map[i * d + j]);
    map += w * d;
  }
  return found;
}

// Of a part's rows: how often they are looked up, then the mean of every column, then its squared distances from that.
constexpr int64_t moments_width(int64_t columns) { return 1 + 2 * columns; }

// Means and biased variances [S, N * D], and look-ups [S], of spaces from the moments of their parts: "Algorithms for
// Computing the Sample Variance: Analysis and Recommendations", The American Statistician 1983. Others keep what they have.
void merge(const Widths& shape, const std::vector<float>& moments, float* mean, float* variance, float* looked_up) {
  const int64_t nd = shape.wide();
  std::vector<double> counts(shape.spaces), means(shape.spaces * nd), squares(shape.spaces * nd);
  for (size_t p = 0; p < shape.parts.size(); ++p) {
    const int64_t s = shape.parts[p].space;
    const float *total = moments.data() + p * moments_width(nd), *centre = total + 1, *away = centre + nd;
    const double before = counts[s], after = before + total[0], share = after ? total[0] / after : 0.0;
    for (int64_t j = 0; j < nd; ++j) {
      const double apart = centre[j] - means[s * nd + j];
      means[s * nd + j] += apart * share;
      squares[s * nd + j] += away[j] + apart * apart * before * share;
    }
    counts[s] = after;
  }
  for (int64_t s = 0; s < shape.spaces; ++s) {
    if (counts[s] == 0) continue;
    looked_up[s] = static_cast<float>(counts[s]);
    for (int64_t j = s * nd; j < (s + 1) * nd; ++j) {
      mean[j] = static_cast<float>(means[j]);
      variance[j] = static_cast<float>(squares[j] / counts[s]);
    }
  }
}

// Rows int64 [U] of table [V, W]: themselves [U, W], their candidates times maps [S, I, D] -> [U, N * D], and of these by
// space and column, a row counted as often as it is looked up, mean and biased variance [S, N * D], and look-ups [S].
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> widen(const Tensor& table, const Tensor& rows, const Tensor& begins,
                                                           int64_t n, const Tensor& cuts, const Tensor& takes,
                                                           const Tensor& maps, at::IntArrayRef widths) {
  check(table, at::kFloat, 2, "table");
  check(rows, at::kLong, 1, "rows");
  check(maps, at::kFloat, 3, "maps");
  const Widths shape = widths_of(begins.numel(), cuts, takes, static_cast<int64_t>(widths.size()), maps.size(2));
  const LookUps look_ups(begins, n);
  const int64_t u = shape.u, w = table.size(1), height = table.size(0), inner = maps.size(1), d = shape.d, nd = shape.wide();
  TORCH_CHECK(rows.numel() == u && maps.size(0) == shape.spaces && inner <= w && d <= w &&
                  std::accumulate(widths.begin(), widths.end(), int64_t{0}) == inner &&
                  *std::min_element(widths.begin(), widths.end()) > 0, "shapes do not fit");
  Tensor x = at::empty({u, w}, table.options()), wide = at::empty({u, nd}, table.options());
  const float *from = table.const_data_ptr<float>(), *map = maps.const_data_ptr<float>();
  const int64_t* row = rows.const_data_ptr<int64_t>();
  float *values = x.mutable_data_ptr<float>(), *to = wide.mutable_data_ptr<float>();
  std::vector<float> moments(shape.parts.size() * moments_width(nd));
  shape.each([&](int64_t p, const Chunk& part) {
    float* __restrict__ total = moments.data() + p * moments_width(nd);
    float *__restrict__ centre = total + 1, *__restrict__ away = centre + nd;
    for (int64_t k = part.begin; k < part.end; ++k) {
      if (k + kAheadRows < part.end) {  // rows lie across two lines of the cache
        __builtin_prefetch(from + row[k + kAheadRows] * w);
        __builtin_prefetch(from + row[k + kAheadRows] * w + w - 1);
      }
      const float *found = from + row_at(row, k, height) * w, *value = values + k * w, *m = map + part.space * inner * d;
      std::copy(found, found + w, values + k * w);
      if (!shape.takes[part.space]) continue;
      float* out = to + k * nd;
      for (const int64_t width : widths) {
        times(value, m, width, out, d);
        value += width, m += width * d, out += d;
      }
      const float c = look_ups(k);
      total[0] += c;
      for (int64_t j = 0; j < nd; ++j) centre[j] += c * to[k * nd + j];
    }
    if (!shape.takes[part.space]) return;
    for (int64_t j = 0; j < nd; ++j) centre[j] /= total[0];
    for (int64_t k = part.begin; k < part.end; ++k) {
      const float c = look_ups(k);
      for (int64_t j = 0; j < nd; ++j) away[j] += c * (to[k * nd + j] - centre[j]) * (to[k * nd + j] - centre[j]);
    }
  });
  Tensor mean = at::zeros({shape.spaces, nd}, table.options()), variance = at::ones({shape.spaces, nd}, table.options());
  Tensor looked_up = at::ones({shape.spaces}, table.options());
  merge(shape, moments, mean.mutable_data_ptr<float>(), variance.mutable_data_ptr<float>(),
        looked_up.mutable_data_ptr<float>());
  return {x, wide, mean, variance, looked_up};
}

// How candidates of one space are normalised, from the statistics that widen() gives.
struct Normal {
  std::vector<float> root;
  const float* mean;

  Normal(const Tensor& means, const Tensor& variances, int64_t space, double eps)
      : root(means.size(1)), mean(means.const_data_ptr<float>() + space * means.size(1)) {
    const float* v = variances.const_data_ptr<float>() + space * means.size(1);
    for (size_t j = 0; j < root.size(); ++j) root[j] = 1.0f / std::sqrt(v[j] + static_cast<float>(eps));
  }

  void operator()(const float* __restrict__ wide, float* __restrict__ z) const {
    const float *__restrict__ r = root.data(), *__restrict__ m = mean;
    for (size_t j = 0; j < root.size(); ++j) z[j] = (wide[j] - m[j]) * r[j];
  }
};

// sum_n w_n tanh(z_n) of N normalised candidates.
template <int64_t kWidth>
void blend_row(const float* __restrict__ z, const float* __restrict__ weights, float* __restrict__ out, int64_t n,
               int64_t width) {
  const int64_t d = kWidth ? kWidth : width;
  std::fill(out, out + d, 0.0f);
  for (int64_t c = 0; c < n; ++c)
    for (int64_t j = 0; j < d; ++j) out[j] += weights[c] * squashed(z[c * d + j]);
}

// The gradient of one candidate from that of the sum, g, and what goes through the statistics: its sum, and along z.
template <int64_t kWidth>
void unblend(const float* __restrict__ z, const float* __restrict__ g, float weight, float* __restrict__ of_z,
             float* __restrict__ sum, float* __restrict__ along, int64_t width) {
  const int64_t d = kWidth ? kWidth : width;
#pragma omp simd
  for (int64_t j = 0; j < d; ++j) {
    const float y = squashed(z[j]), pull = weight * g[j] * (1.0f - y * y);
    of_z[j] = pull;
    sum[j] += pull;
    along[j] += pull * z[j];
  }
}

// The gradient of a candidate's weight.
template <int64_t kWidth>
float unweigh(const float* __restrict__ z, const float* __restrict__ g, float* __restrict__ y, int64_t width) {
  const int64_t d = kWidth ? kWidth : width;
  float total = 0.0f;
  for (int64_t j = 0; j < d; ++j) y[j] = squashed(z[j]);
#pragma omp simd reduction(+ : total)
  for (int64_t j = 0; j < d; ++j) total += g[j] * y[j];
  return total;
}

// Candidates normalised, squashed by tanh and mixed by weights [U, N] -> [U, D].
Tensor blend(const Tensor& x, const Tensor& wide, const Tensor& cuts, const Tensor& takes, const Tensor& mean,
             const Tensor& variance, const Tensor& weights, double eps) {
  check(x, at::kFloat, 2, "x");
  check(wide, at::kFloat, 2, "wide");
  check(weights, at::kFloat, 2, "weights");
  const int64_t n = weights.size(1);
  const Widths shape = widths_of(weights.size(0), cuts, takes, n, wide.size(1) / std::max<int64_t>(n, 1));
  const int64_t w = x.size(1), d = shape.d, nd = shape.wide();
  TORCH_CHECK(x.size(0) == shape.u && wide.size(0) == shape.u && wide.size(1) == nd && d <= w, "shapes do not fit");
  shape.check_statistics(mean, variance);
  Tensor mixed = at::empty({shape.u, d}, x.options());
  const float *values = x.const_data_ptr<float>(), *from = wide.const_data_ptr<float>();
  const float* by = weights.const_data_ptr<float>();
  float* to = mixed.mutable_data_ptr<float>();
  shape.by_width([&](auto kWidth) {
    shape.each([&](int64_t, const Chunk& part) {
      const Normal normal(mean, variance, part.space, eps);
      std::vector<float> z(nd);
      for (int64_t k = part.begin; k < part.end; ++k) {
        if (!shape.takes[part.space]) {
          std::copy(values + k * w, values + k * w + d, to + k * d);
          continue;
        }
        normal(from + k * nd, z.data());
        blend_row<kWidth>(z.data(), by + k * n, to + k * d, n, d);
      }
    });
  });
  return mixed;
}

// Its gradient of the weights.
Tensor blend_weights_backward(const Tensor& gradient, const Tensor& wide, const Tensor& cuts, const Tensor& takes,
                              const Tensor& mean, const Tensor& variance, double eps) {
  check(gradient, at::kFloat, 2, "gradient");
  check(wide, at::kFloat, 2, "wide");
  const int64_t d = gradient.size(1);
  const Widths shape = widths_of(gradient.size(0), cuts, takes, wide.size(1) / std::max<int64_t>(d, 1), d);
  TORCH_CHECK(wide.size(0) == shape.u && wide.size(1) == shape.wide(), "shapes do not fit");
  shape.check_statistics(mean, variance);
  Tensor of_weights = at::zeros({shape.u, shape.count}, wide.options());
  const float *g = gradient.const_data_ptr<float>(), *from = wide.const_data_ptr<float>();
  float* to = of_weights.mutable_data_ptr<float>();
  shape.by_width([&](auto kWidth) {
    shape.each([&](int64_t, const Chunk& part) {
      if (!shape.takes[part.space]) return;
      const Normal normal(mean, variance, part.space, eps);
      std::vector<float> z(shape.wide()), room(d);
      for (int64_t k = part.begin; k < part.end; ++k) {
        normal(from + k * shape.wide(), z.data());
        for (int64_t c = 0; c < shape.count; ++c)
          to[k * shape.count + c] = unweigh<kWidth>(z.data() + c * d, g + k * d, room.data(), d);
      }
    });
  });
  return of_weights;
}

// The gradients of what widen() read, through the statistics as well: of the rows [U, W], and of maps.
std::tuple<Tensor, Tensor> widen_backward(const Tensor& gradient, const Tensor& x, const Tensor& wide,
                                            const Tensor& begins, int64_t n, const Tensor& cuts, const Tensor& takes,
                                            const Tensor& maps, at::IntArrayRef widths, const Tensor& mean,
                                            const Tensor& variance, const Tensor& looked_up, const Tensor& weights,
                                            double eps) {
  check(gradient, at::kFloat, 2, "gradient");
  check(x, at::kFloat, 2, "x");
  check(wide, at::kFloat, 2, "wide");
  check(maps, at::kFloat, 3, "maps");
  check(weights, at::kFloat, 2, "weights");
  const LookUps look_ups(begins, n);
  const Widths shape = widths_of(begins.numel(), cuts, takes, weights.size(1), gradient.size(1));
  const int64_t u = shape.u, w = x.size(1), d = shape.d, nd = shape.wide(), inner = maps.size(1);
  TORCH_CHECK(x.size(0) == u && wide.size(0) == u && wide.size(1) == nd && gradient.size(0) == u && weights.size(0) == u &&
                  maps.size(0) == shape.spaces && maps.size(2) == d && inner <= w && looked_up.numel() == shape.spaces &&
                  static_cast<int64_t>(widths.size()) == shape.count, "shapes do not fit");
  shape.check_statistics(mean, variance);
  Tensor pulls = at::empty({u, nd}, x.options()), of_x = at::empty({u, w}, x.options());
  Tensor of_maps = at::zeros(maps.sizes(), maps.options());
  const float *g = gradient.const_data_ptr<float>(), *values = x.const_data_ptr<float>();
  const float *from = wide.const_data_ptr<float>(), *map = maps.const_data_ptr<float>();
  const float *by = weights.const_data_ptr<float>(), *counts = looked_up.const_data_ptr<float>();
  float *pull = pulls.mutable_data_ptr<float>(), *to = of_x.mutable_data_ptr<float>();
  float* to_maps = of_maps.mutable_data_ptr<float>();
  std::vector<float> sums(shape.parts.size() * 2 * nd), map_sums(shape.parts.size() * inner * d);
  std::vector<double> totals(shape.spaces * 2 * nd);
  shape.by_width([&](auto kWidth) {
    shape.each([&](int64_t p, const Chunk& part) {
      if (!shape.takes[part.space]) return;
      const Normal normal(mean, variance, part.space, eps);
      std::vector<float> z(nd);
      for (int64_t k = part.begin; k < part.end; ++k) {
        normal(from + k * nd, z.data());
        for (int64_t c = 0; c < shape.count; ++c) {
          float* sum = sums.data() + p * 2 * nd + c * d;
          unblend<kWidth>(z.data() + c * d, g + k * d, by[k * shape.count + c], pull + k * nd + c * d, sum, sum + nd, d);
        }
      }
    });
    for (size_t p = 0; p < shape.parts.size(); ++p)
      for (int64_t j = 0; j < 2 * nd; ++j) totals[shape.parts[p].space * 2 * nd + j] += sums[p * 2 * nd + j];
    shape.each([&](int64_t p, const Chunk& part) {
      const int64_t s = part.space;
      if (!shape.takes[s]) {
        for (int64_t k = part.begin; k < part.end; ++k) {
          std::copy(g + k * d, g + (k + 1) * d, to + k * w);
          std::fill(to + k * w + d, to + (k + 1) * w, 0.0f);
        }
        return;
      }
      const Normal normal(mean, variance, s, eps);
      const std::vector<float> back = turned(map + s * inner * d, widths, d);
      std::vector<float> room(4 * nd);
      float *__restrict__ z = room.data(), *__restrict__ of_wide = z + nd;
      float *__restrict__ shift = of_wide + nd, *__restrict__ turn = shift + nd;
      for (int64_t j = 0; j < nd; ++j) {
        shift[j] = static_cast<float>(totals[s * 2 * nd + j] / counts[s]);
        turn[j] = static_cast<float>(totals[s * 2 * nd + nd + j] / counts[s]);
      }
      for (int64_t k = part.begin; k < part.end; ++k) {
        const float c = look_ups(k);
        normal(from + k * nd, z);
        for (int64_t j = 0; j < nd; ++j) of_wide[j] = normal.root[j] * (pull[k * nd + j] - c * (shift[j] + turn[j] * z[j]));
        const float *above = of_wide, *turned_map = back.data(), *value = values + k * w;
        float *out = to + k * w, *map_sum = map_sums.data() + p * inner * d;
        for (const int64_t rows : widths) {
          times(above, turned_map, d, out, rows);
          add_outer<kWidth>(value, above, rows, map_sum, d);
          above += d, value += rows, out += rows, turned_map += rows * d, map_sum += rows * d;
        }
        std::fill(out, to + (k + 1) * w, 0.0f);
      }
    });
  });
  for (size_t p = 0; p < shape.parts.size(); ++p)
    for (int64_t j = 0; j < inner * d; ++j) to_maps[shape.parts[p].space * inner * d + j] += map_sums[p * inner * d + j];
  return {of_x, of_maps};
}

}  // namespace
