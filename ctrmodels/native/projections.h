// Projections of every vector onto a few others.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "common.h"
#include "tiles.h"

namespace {

void check_projection(const Tensor& x, const Tensor& onto) {
  check(x, at::kFloat, 2, "x");
  check(onto, at::kFloat, 2, "onto");
  TORCH_CHECK(x.size(1) == onto.size(1), "shapes do not fit");
}

// x [N, D], onto [P, D] -> [N, P]. kLanes rows at a time, side by side.
Tensor project(const Tensor& x, const Tensor& onto) {
  check_projection(x, onto);
  const int64_t n = x.size(0), d = x.size(1), p = onto.size(0), tiles = (n + kLanes - 1) / kLanes;
  Tensor result = at::empty({n, p}, x.options());
  const float *from = x.const_data_ptr<float>(), *vectors = onto.const_data_ptr<float>();
  float* out = result.mutable_data_ptr<float>();
  at::parallel_for(0, tiles, grain(kLanes * d), [&](int64_t begin, int64_t end) {
    Tile rows(d);
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = t * kLanes, count = std::min(kLanes, n - first);
      rows.load(from + first * d, d, count);
      for (int64_t k = 0; k < p; ++k) {
        Lanes sum{};
        for (int64_t j = 0; j < d; ++j) sum += vectors[k * d + j] * rows.values[j];
        for (int64_t r = 0; r < count; ++r) out[(first + r) * p + k] = sum[r];
      }
    }
  });
  return result;
}

template <int64_t kWidth>
void project_back(const float* g, const float* x, const float* vectors, float* of_x, float* of_vectors, int64_t n,
                  int64_t p, int64_t d) {
  if (kWidth) d = kWidth;
  sum_over_parts(n, p * d, of_vectors, [=](int64_t i, float* sum) {
    const float *own = g + i * p, *from = x + i * d;
    float* to = of_x + i * d;
    for (int64_t j = 0; j < d; ++j) to[j] = own[0] * vectors[j];
    for (int64_t k = 1; k < p; ++k)
      for (int64_t j = 0; j < d; ++j) to[j] += own[k] * vectors[k * d + j];
    for (int64_t k = 0; k < p; ++k)
      for (int64_t j = 0; j < d; ++j) sum[k * d + j] += own[k] * from[j];
  });
}

// gradient [N, P] of project() -> those of x and of onto.
std::tuple<Tensor, Tensor> project_backward(const Tensor& gradient, const Tensor& x, const Tensor& onto) {
  check_projection(x, onto);
  check(gradient, at::kFloat, 2, "gradient");
  const int64_t n = x.size(0), d = x.size(1), p = onto.size(0);
  TORCH_CHECK(gradient.size(0) == n && gradient.size(1) == p && p > 0, "shapes do not fit");
  Tensor of_x = at::empty(x.sizes(), x.options()), of_onto = at::empty(onto.sizes(), onto.options());
  const auto back = d == 16 ? project_back<16> : project_back<0>;
  back(gradient.const_data_ptr<float>(), x.const_data_ptr<float>(), onto.const_data_ptr<float>(),
       of_x.mutable_data_ptr<float>(), of_onto.mutable_data_ptr<float>(), n, p, d);
  return {of_x, of_onto};
}

}  // namespace
