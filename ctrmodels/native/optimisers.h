// Optimisers of touched rows.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "common.h"

namespace {

void check_rows(const Tensor& table, const Tensor& rows, const Tensor& gradient) {
  check(table, at::kFloat, 2, "table");
  check(rows, at::kLong, 1, "rows");
  check(gradient, at::kFloat, 2, "gradient");
  TORCH_CHECK(gradient.size(0) == rows.numel() && gradient.size(1) == table.size(1), "gradient of ", gradient.sizes(),
              " for ", rows.numel(), " rows of ", table.sizes());
}

// One accumulator per row: sums[r] += mean(g^2); table[r] -= rate * g / (sqrt(sums[r]) + eps). rows are distinct.
void rowwise_adagrad(const Tensor& table, const Tensor& sums, const Tensor& rows, const Tensor& gradient, double rate,
                     double eps) {
  check_rows(table, rows, gradient);
  check(sums, at::kFloat, 1, "sums");
  const int64_t width = table.size(1), height = table.size(0), u = rows.numel();
  float *values = table.mutable_data_ptr<float>(), *sum = sums.mutable_data_ptr<float>();
  const int64_t* row = rows.const_data_ptr<int64_t>();
  const float* from = gradient.const_data_ptr<float>();
  at::parallel_for(0, u, grain(width), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      if (k + kAheadRows < end) __builtin_prefetch(values + row[k + kAheadRows] * width, 1);
      const int64_t r = row_at(row, k, height);
      const float* g = from + k * width;
      float* value = values + r * width;
      float square = 0.0f;
      for (int64_t j = 0; j < width; ++j) square += g[j] * g[j];
      sum[r] += square / static_cast<float>(width);
      const float scale = static_cast<float>(rate) / (std::sqrt(sum[r]) + static_cast<float>(eps));
      for (int64_t j = 0; j < width; ++j) value[j] -= scale * g[j];
    }
  });
}

// Adam on the touched rows; step counts from 1. rows are distinct.
void lazy_adam(const Tensor& table, const Tensor& first, const Tensor& second, const Tensor& rows,
               const Tensor& gradient, double rate, double beta1, double beta2, double eps, int64_t step) {
  check_rows(table, rows, gradient);
  check(first, at::kFloat, 2, "first");
  check(second, at::kFloat, 2, "second");
  TORCH_CHECK(first.sizes() == table.sizes() && second.sizes() == table.sizes(), "moments of another shape");
  const int64_t width = table.size(1), height = table.size(0), u = rows.numel();
  float *values = table.mutable_data_ptr<float>(), *means = first.mutable_data_ptr<float>(),
        *squares = second.mutable_data_ptr<float>();
  const int64_t* row = rows.const_data_ptr<int64_t>();
  const float* from = gradient.const_data_ptr<float>();
  const double correction = std::sqrt(1 - std::pow(beta2, static_cast<double>(step)));
  const float size = static_cast<float>(rate / (1 - std::pow(beta1, static_cast<double>(step))));
  const float unbias = static_cast<float>(1 / correction), tiny = static_cast<float>(eps);
  const float keep1 = static_cast<float>(beta1), keep2 = static_cast<float>(beta2);
  const float take1 = static_cast<float>(1 - beta1), take2 = static_cast<float>(1 - beta2);
  at::parallel_for(0, u, grain(3 * width), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      if (k + kAheadRows < end) {
        const int64_t ahead = row[k + kAheadRows] * width;
        __builtin_prefetch(values + ahead, 1);
        __builtin_prefetch(means + ahead, 1);
        __builtin_prefetch(squares + ahead, 1);
      }
      const int64_t r = row_at(row, k, height) * width;
      const float* g = from + k * width;
      float *value = values + r, *mean = means + r, *square = squares + r;
      for (int64_t j = 0; j < width; ++j) {
        mean[j] = keep1 * mean[j] + take1 * g[j];
        square[j] = keep2 * square[j] + take2 * g[j] * g[j];
        value[j] -= size * mean[j] / (std::sqrt(square[j]) * unbias + tiny);
      }
    }
  });
}

struct Stride {
  float keep1, keep2, half1, half2;  // what is left of the moments after it, and in its middle
};

// A row's h steps of Adam at once, with the moments of their middle.
template <bool kPushed, int64_t kWidth>
void stride(float* __restrict__ value, float* __restrict__ mean, float* __restrict__ square, const float* __restrict__ g,
            const Stride s, float scale, float root, float tiny, float pull, int64_t width) {
  const int64_t d = kWidth ? kWidth : width;
  for (int64_t j = 0; j < d; ++j) {
    const float whole = kPushed ? pull * value[j] + g[j] : pull * value[j];
    const float m = s.half1 * mean[j] + (1 - s.half1) * whole, v = s.half2 * square[j] + (1 - s.half2) * whole * whole;
    mean[j] = s.keep1 * mean[j] + (1 - s.keep1) * whole;
    square[j] = s.keep2 * square[j] + (1 - s.keep2) * whole * whole;
    value[j] -= scale * m / (std::sqrt(v) * root + tiny);
  }
}

// Adam whose decay is part of the gradient, which therefore moves a row at every step, touched or not: rows first make up
// the steps since last int32 [V], several at a time and fewer right after a touch, then take one with their gradient if
// there is one, and are then as after `step` steps. A stride moves a value by a quarter at most.
void coupled_adam(const Tensor& table, const Tensor& first, const Tensor& second, const Tensor& last, const Tensor& rows,
                  const std::optional<Tensor>& gradient, double rate, double beta1, double beta2, double eps,
                  double decay, int64_t step) {
  check(table, at::kFloat, 2, "table");
  check(first, at::kFloat, 2, "first");
  check(second, at::kFloat, 2, "second");
  check(last, at::kInt, 1, "last");
  check(rows, at::kLong, 1, "rows");
  if (gradient) check_rows(table, rows, *gradient);
  const int64_t width = table.size(1), height = table.size(0), u = rows.numel();
  TORCH_CHECK(first.sizes() == table.sizes() && second.sizes() == table.sizes() && last.numel() == height,
              "moments of another shape");
  const int64_t longest = std::clamp<int64_t>(static_cast<int64_t>(0.25 / std::max(rate, 1e-6)), 1, 512);
  std::vector<Stride> strides(longest + 1);
  for (int64_t h = 1; h <= longest; ++h) {
    const double all = static_cast<double>(h), half = (all + 1) / 2;
    strides[h] = {static_cast<float>(std::pow(beta1, all)), static_cast<float>(std::pow(beta2, all)),
                  static_cast<float>(std::pow(beta1, half)), static_cast<float>(std::pow(beta2, half))};
  }
  // By twice the step, since middles lie between steps; the corrections are 1 long before the last one.
  const int64_t corrected = std::min<int64_t>(2 * step + 2, 1 << 15);
  std::vector<float> size(corrected), unbias(corrected);
  double left1 = 1, left2 = 1;
  for (int64_t i = 1; i < corrected; ++i) {
    left1 *= std::sqrt(beta1);
    left2 *= std::sqrt(beta2);
    size[i] = static_cast<float>(rate / (1 - left1));
    unbias[i] = static_cast<float>(1 / std::sqrt(1 - left2));
  }
  float *values = table.mutable_data_ptr<float>(), *means = first.mutable_data_ptr<float>(),
        *squares = second.mutable_data_ptr<float>();
  int32_t* taken = last.mutable_data_ptr<int32_t>();
  const int64_t* row = rows.const_data_ptr<int64_t>();
  const float* from = gradient ? gradient->const_data_ptr<float>() : nullptr;
  const float tiny = static_cast<float>(eps), pull = static_cast<float>(decay);
  const auto free = width == 16 ? stride<false, 16> : stride<false, 0>;
  const auto pushed = width == 16 ? stride<true, 16> : stride<true, 0>;
  at::parallel_for(0, u, grain(8 * width), [&](int64_t begin, int64_t end) {
    // Where the last row that had never moved began, and what became of it: the next one that begins there ends there.
    std::vector<float> start, moved;
    for (int64_t k = begin; k < end; ++k) {
      if (k + kAheadRows < end) {
        const int64_t ahead = row[k + kAheadRows] * width;
        __builtin_prefetch(values + ahead, 1);
        __builtin_prefetch(means + ahead, 1);
        __builtin_prefetch(squares + ahead, 1);
        __builtin_prefetch(taken + row[k + kAheadRows], 1);
      }
      const int64_t r = row_at(row, k, height), place = r * width;
      const auto move = [&](const auto& by, int64_t at, int64_t h, const float* g) {
        const int64_t middle = std::min(2 * at + h + 1, corrected - 1);
        by(values + place, means + place, squares + place, g, strides[h], static_cast<float>(h) * size[middle],
           unbias[middle], tiny, pull, width);
      };
      int64_t at = taken[r];
      const int64_t stop = from ? step - 1 : step;
      const bool fresh = at == 0 && at < stop;
      if (fresh && !start.empty() && std::equal(start.begin(), start.end(), values + place)) {
        std::copy_n(moved.data(), width, values + place);
        std::copy_n(moved.data() + width, width, means + place);
        std::copy_n(moved.data() + 2 * width, width, squares + place);
        at = stop;
      } else if (fresh) {
        start.assign(values + place, values + place + width);
      }
      const bool keep = fresh && at < stop;
      for (int64_t done = 0; at < stop;) {
        const int64_t h = std::min({stop - at, longest, 1 + 2 * done});
        move(free, at, h, nullptr);
        at += h;
        done += h;
      }
      if (keep) {
        moved.assign(values + place, values + place + width);
        moved.insert(moved.end(), means + place, means + place + width);
        moved.insert(moved.end(), squares + place, squares + place + width);
      }
      if (from) move(pushed, at, 1, from + k * width);
      taken[r] = static_cast<int32_t>(step);
    }
  });
}

}  // namespace
