// Rows of a table by id space: cuts int64 [S + 1] says where each space's begin among the U rows, begins int32 [U] and
// n look-ups how often each counts.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common.h"

namespace {

struct Chunk {
  int64_t space, begin, end;
};

// How often a row of the U is looked up.
struct LookUps {
  const int32_t* begins;
  int64_t u, n;

  LookUps(const Tensor& starts, int64_t total) : u(starts.numel()), n(total) {
    check(starts, at::kInt, 1, "begins");
    begins = starts.const_data_ptr<int32_t>();
  }
  float operator()(int64_t k) const { return static_cast<float>((k + 1 < u ? begins[k + 1] : n) - begins[k]); }
};

// Pieces of a space's rows that one thread sums up: the same ones whatever the number of threads.
std::vector<Chunk> chunks(const Tensor& cuts) {
  constexpr int64_t kRows = 512;
  check(cuts, at::kLong, 1, "cuts");
  const int64_t* cut = cuts.const_data_ptr<int64_t>();
  std::vector<Chunk> found;
  for (int64_t s = 0; s + 1 < cuts.numel(); ++s)
    for (int64_t begin = cut[s]; begin < cut[s + 1]; begin += kRows)
      found.push_back({s, begin, std::min(begin + kRows, cut[s + 1])});
  return found;
}

// Calls work with the width d as a constant if it is a usual one.
template <typename Work>
void by_width(int64_t d, const Work& work) {
  if (d == 8)
    work(std::integral_constant<int64_t, 8>());
  else if (d == 16)
    work(std::integral_constant<int64_t, 16>());
  else
    work(d);
}

// As many zeros as the width, in registers where that is a constant.
template <typename Width>
auto zeros_of(Width w) {
  if constexpr (std::is_same_v<Width, int64_t>)
    return std::vector<float>(w);
  else
    return std::array<float, Width::value>{};
}

// add(chunk, sums [width]) for every chunk -> its sums by space, added to result [S, width].
template <typename Add>
void sums_by_space(const std::vector<Chunk>& parts, int64_t width, double* result, const Add& add) {
  std::vector<double> partial(parts.size() * width);
  at::parallel_for(0, static_cast<int64_t>(parts.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) add(parts[p], partial.data() + p * width);
  });
  for (size_t p = 0; p < parts.size(); ++p)
    for (int64_t j = 0; j < width; ++j) result[parts[p].space * width + j] += partial[p * width + j];
}

// x [U, D] normalised by space and column, a row counted as often as it is looked up, times scale [S, D]: the result
// [U, D], mean and biased variance [S, D], and the look-ups of each space [S].
std::tuple<Tensor, Tensor, Tensor, Tensor> row_norm(const Tensor& x, const Tensor& begins, int64_t n, const Tensor& cuts,
                                                    const Tensor& scale, double eps) {
  check(x, at::kFloat, 2, "x");
  check(scale, at::kFloat, 2, "scale");
  const int64_t u = x.size(0), d = x.size(1), spaces = scale.size(0);
  TORCH_CHECK(begins.numel() == u && cuts.numel() == spaces + 1 && scale.size(1) == d, "shapes do not fit");
  const std::vector<Chunk> parts = chunks(cuts);
  const float *from = x.const_data_ptr<float>(), *by = scale.const_data_ptr<float>();
  const LookUps count(begins, n);
  Tensor result = at::empty({u, d}, x.options()), mean = at::empty({spaces, d}, x.options());
  Tensor variance = at::empty({spaces, d}, x.options()), looked_up = at::empty({spaces}, x.options());
  float *to = result.mutable_data_ptr<float>(), *means = mean.mutable_data_ptr<float>();
  float *variances = variance.mutable_data_ptr<float>(), *counts = looked_up.mutable_data_ptr<float>();
  std::vector<double> first(spaces * (d + 1)), second(spaces * d);
  sums_by_space(parts, d + 1, first.data(), [&](const Chunk& part, double* sums) {
    by_width(d, [&](auto w) {
      auto sum = zeros_of(w);
      float looked_up = 0.0f;
      for (int64_t k = part.begin; k < part.end; ++k) {
        const float c = count(k);
        for (int64_t j = 0; j < w; ++j) sum[j] += c * from[k * w + j];
        looked_up += c;
      }
      std::copy_n(sum.begin(), d, sums);
      sums[d] = looked_up;
    });
  });
  for (int64_t s = 0; s < spaces; ++s) {
    counts[s] = static_cast<float>(std::max(1.0, first[s * (d + 1) + d]));
    for (int64_t j = 0; j < d; ++j) means[s * d + j] = static_cast<float>(first[s * (d + 1) + j] / counts[s]);
  }
  sums_by_space(parts, d, second.data(), [&](const Chunk& part, double* sums) {
    const float* centre = means + part.space * d;
    by_width(d, [&](auto w) {
      auto sum = zeros_of(w);
      for (int64_t k = part.begin; k < part.end; ++k) {
        const float c = count(k);
        for (int64_t j = 0; j < w; ++j) {
          const float away = from[k * w + j] - centre[j];
          sum[j] += c * away * away;
        }
      }
      std::copy_n(sum.begin(), d, sums);
    });
  });
  std::vector<float> factor(spaces * d);
  for (int64_t i = 0; i < spaces * d; ++i) {
    variances[i] = static_cast<float>(second[i] / counts[i / d]);
    factor[i] = by[i] / std::sqrt(variances[i] + static_cast<float>(eps));
  }
  at::parallel_for(0, static_cast<int64_t>(parts.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const float *centre = means + parts[p].space * d, *times = factor.data() + parts[p].space * d;
      by_width(d, [&](auto w) {
        for (int64_t k = parts[p].begin; k < parts[p].end; ++k) {
          const float* x = from + k * w;
          float* __restrict__ out = to + k * w;
          for (int64_t j = 0; j < w; ++j) out[j] = (x[j] - centre[j]) * times[j];
        }
      });
    }
  });
  return {result, mean, variance, looked_up};
}

// Its gradients: of x [U, D], and of scale [S, D].
std::tuple<Tensor, Tensor> row_norm_backward(const Tensor& gradient, const Tensor& x, const Tensor& begins, int64_t n,
                                             const Tensor& cuts, const Tensor& scale, const Tensor& mean,
                                             const Tensor& variance, const Tensor& looked_up, double eps) {
  check(gradient, at::kFloat, 2, "gradient");
  check(x, at::kFloat, 2, "x");
  const int64_t u = x.size(0), d = x.size(1), spaces = scale.size(0);
  TORCH_CHECK(gradient.sizes() == x.sizes() && begins.numel() == u && cuts.numel() == spaces + 1, "shapes do not fit");
  const std::vector<Chunk> parts = chunks(cuts);
  const float *g = gradient.const_data_ptr<float>(), *from = x.const_data_ptr<float>();
  const float *by = scale.const_data_ptr<float>(), *means = mean.const_data_ptr<float>();
  const float *variances = variance.const_data_ptr<float>(), *counts = looked_up.const_data_ptr<float>();
  const LookUps count(begins, n);
  std::vector<float> root(spaces * d);
  for (int64_t i = 0; i < spaces * d; ++i) root[i] = 1.0f / std::sqrt(variances[i] + static_cast<float>(eps));
  std::vector<double> sums(spaces * 2 * d);  // of the gradient, and of the gradient times the normalised value
  sums_by_space(parts, 2 * d, sums.data(), [&](const Chunk& part, double* total) {
    const float *centre = means + part.space * d, *r = root.data() + part.space * d;
    by_width(d, [&](auto w) {
      auto plain = zeros_of(w), times = zeros_of(w);
      for (int64_t k = part.begin; k < part.end; ++k)
        for (int64_t j = 0; j < w; ++j) plain[j] += g[k * w + j];
      for (int64_t k = part.begin; k < part.end; ++k)  // not both at once, which takes compilers more than two loops
        for (int64_t j = 0; j < w; ++j) times[j] += g[k * w + j] * (from[k * w + j] - centre[j]) * r[j];
      std::copy_n(plain.begin(), d, total);
      std::copy_n(times.begin(), d, total + d);
    });
  });
  Tensor of_x = at::empty({u, d}, x.options()), of_scale = at::empty({spaces, d}, x.options());
  float *to = of_x.mutable_data_ptr<float>(), *to_scale = of_scale.mutable_data_ptr<float>();
  for (int64_t s = 0; s < spaces; ++s)
    for (int64_t j = 0; j < d; ++j) to_scale[s * d + j] = static_cast<float>(sums[s * 2 * d + d + j]);
  at::parallel_for(0, static_cast<int64_t>(parts.size()), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> room(3 * d);
    float *factor = room.data(), *pull = factor + d, *turn = pull + d;
    for (int64_t p = begin; p < end; ++p) {
      const int64_t s = parts[p].space;
      const float *centre = means + s * d, *r = root.data() + s * d;
      for (int64_t j = 0; j < d; ++j) {
        factor[j] = by[s * d + j] * r[j];
        pull[j] = factor[j] * static_cast<float>(sums[s * 2 * d + j] / counts[s]);
        turn[j] = factor[j] * r[j] * static_cast<float>(sums[s * 2 * d + d + j] / counts[s]);
      }
      by_width(d, [&](auto w) {
        for (int64_t k = parts[p].begin; k < parts[p].end; ++k) {
          const float c = count(k);
          const float *x = from + k * w, *above = g + k * w;
          float* __restrict__ out = to + k * w;
          for (int64_t j = 0; j < w; ++j)
            out[j] = factor[j] * above[j] - c * (pull[j] + turn[j] * (x[j] - centre[j]));
        }
      });
    }
  });
  return {of_x, of_scale};
}

}  // namespace
