// Optimisers of touched rows.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <mutex>
#include <optional>
#include <type_traits>
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
      if (k + kAheadRows < end) {
        __builtin_prefetch(values + row[k + kAheadRows] * width, 1);
        __builtin_prefetch(sum + row[k + kAheadRows], 1);
      }
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

// table[r] -= rate * g. rows are distinct.
void descend(const Tensor& table, const Tensor& rows, const Tensor& gradient, double rate) {
  check_rows(table, rows, gradient);
  const int64_t width = table.size(1), height = table.size(0), u = rows.numel();
  float* values = table.mutable_data_ptr<float>();
  const int64_t* row = rows.const_data_ptr<int64_t>();
  const float *from = gradient.const_data_ptr<float>(), size = static_cast<float>(rate);
  at::parallel_for(0, u, grain(width), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      if (k + kAheadRows < end) __builtin_prefetch(values + row[k + kAheadRows] * width, 1);
      float* value = values + row_at(row, k, height) * width;
      for (int64_t j = 0; j < width; ++j) value[j] -= size * from[k * width + j];
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

// h steps of Adam at once, without a gradient: what the moments keep and take; what the sum of the means has of the one before
// it and of the pull, and the mean square in the middle of what it was and of the pull's. The pull of a decay slackens as the
// value goes: by these shares of the whole way in that sum, in the last mean, and on average.
struct Stride {
  float keep1, take1, keep2, take2, sum1, fill1, half2, fill2, slack, slack1, slack2;
};

// What depends on Adam's betas alone: the strides by their number of steps, and the corrections of the moments by twice the
// step, since middles lie between steps. They are 1 long before the last one.
struct Powers {
  static constexpr int64_t kLongest = 512, kCorrected = 1 << 15;
  double beta1, beta2;
  std::vector<Stride> strides;
  std::vector<float> unbias1, unbias2;

  Powers(double beta1, double beta2)
      : beta1(beta1), beta2(beta2), strides(kLongest + 1), unbias1(kCorrected), unbias2(kCorrected) {
    double keep1 = 1, sum1 = 0, late = 0, lates = 0;  // late: the mean of pulls that are 0, 1, 2, ...
    for (int64_t h = 1; h <= kLongest; ++h) {
      const double all = static_cast<double>(h), keep2 = std::pow(beta2, all), half2 = std::pow(beta2, (all + 1) / 2);
      keep1 *= beta1;
      sum1 += keep1;
      late = beta1 * late + (1 - beta1) * (all - 1);
      lates += late;
      const auto f = [](double x) { return static_cast<float>(x); };
      strides[h] = {f(keep1), f(1 - keep1), f(keep2), f(1 - keep2), f(sum1), f(all - sum1), f(half2), f(1 - half2),
                    f(lates / all), f(late / all), f((all - 1) / all / 2)};
    }
    double left1 = 1, left2 = 1;
    for (int64_t i = 1; i < kCorrected; ++i) {
      left1 *= std::sqrt(beta1);
      left2 *= std::sqrt(beta2);
      unbias1[i] = static_cast<float>(1 / (1 - left1));
      unbias2[i] = static_cast<float>(1 / std::sqrt(1 - left2));
    }
  }

  // Those of the last call if the betas are the same: they take longer than a step.
  static std::shared_ptr<const Powers> of(double beta1, double beta2) {
    static std::mutex mutex;
    static std::shared_ptr<const Powers> last;
    const std::lock_guard<std::mutex> lock(mutex);
    if (!last || last->beta1 != beta1 || last->beta2 != beta2) last = std::make_shared<const Powers>(beta1, beta2);
    return last;
  }
};

// Adam whose decay is part of the gradient, which therefore moves a row at every step, touched or not. A row makes up the
// steps that it missed in strides, which move a value by a half at most, and are the shorter the faster the corrections of
// the moments, or the mean square that a gradient has just raised, change.
class CoupledAdam {
 public:
  CoupledAdam(const Tensor& table, const Tensor& first, const Tensor& second, const Tensor& last, double rate, double beta1,
              double beta2, double eps, double decay)
      : powers_(Powers::of(beta1, beta2)),
        strides_(powers_->strides.data()),
        unbias1_(powers_->unbias1.data()),
        unbias2_(powers_->unbias2.data()),
        rate_(static_cast<float>(rate)),
        tiny_(static_cast<float>(eps)),
        pull_(static_cast<float>(decay)),
        longest_(std::clamp<int64_t>(static_cast<int64_t>(0.5 / std::max(rate, 1e-6)), 1, Powers::kLongest)) {
    check(table, at::kFloat, 2, "table");
    check(first, at::kFloat, 2, "first");
    check(second, at::kFloat, 2, "second");
    check(last, at::kInt, 1, "last");
    TORCH_CHECK(first.sizes() == table.sizes() && second.sizes() == table.sizes() && last.numel() == table.size(0),
                "moments of another shape");
    values_ = table.mutable_data_ptr<float>();
    means_ = first.mutable_data_ptr<float>();
    squares_ = second.mutable_data_ptr<float>();
    taken_ = last.mutable_data_ptr<int32_t>();
    width_ = table.size(1);
  }

  // Calls work with the width as a constant if it is the usual one, and else with 0.
  template <typename Work>
  void by_width(const Work& work) const {
    if (width_ == 16)
      work(std::integral_constant<int64_t, 16>());
    else
      work(std::integral_constant<int64_t, 0>());
  }

  void fetch(int64_t r) const {
    __builtin_prefetch(values_ + r * width_, 1);
    __builtin_prefetch(means_ + r * width_, 1);
    __builtin_prefetch(squares_ + r * width_, 1);
    __builtin_prefetch(taken_ + r, 1);
  }

  // Where the last row that had never moved began, and what became of it: the next one that begins there ends there.
  struct Fresh {
    std::vector<float> start, moved;
  };

  // Row r as after `step` steps without a gradient.
  template <int64_t kWidth>
  void catch_up(int64_t r, int64_t step, Fresh& fresh) const {
    const int64_t d = kWidth ? kWidth : width_;
    float *value = values_ + r * d, *mean = means_ + r * d, *square = squares_ + r * d;
    const int64_t first = taken_[r];
    if (first >= step) return;
    taken_[r] = static_cast<int32_t>(step);
    if (first == 0 && !fresh.start.empty() && std::equal(fresh.start.begin(), fresh.start.end(), value)) {
      const float* moved = fresh.moved.data();
      std::copy_n(moved, d, value);
      std::copy_n(moved + d, d, mean);
      std::copy_n(moved + 2 * d, d, square);
      return;
    }
    if (first == 0) fresh.start.assign(value, value + d);
    for (int64_t at = first; at < step;) {
      const int64_t h = std::min({step - at, longest_, 1 + std::min(at / 2, at - first + kSteady)});
      stride<false, kWidth>(value, mean, square, nullptr, at, h);
      at += h;
    }
    if (first == 0) {
      fresh.moved.assign(value, value + d);
      fresh.moved.insert(fresh.moved.end(), mean, mean + d);
      fresh.moved.insert(fresh.moved.end(), square, square + d);
    }
  }

  // Row r takes step number `step` with the gradient g.
  template <int64_t kWidth>
  void push(int64_t r, const float* g, int64_t step) const {
    const int64_t d = kWidth ? kWidth : width_;
    stride<true, kWidth>(values_ + r * d, means_ + r * d, squares_ + r * d, g, step - 1, 1);
    taken_[r] = static_cast<int32_t>(step);
  }

 private:
  // For so many steps the mean square is much the same.
  static constexpr int64_t kSteady = 32;

  // h steps at once after the first `at`; with a gradient g it is one.
  template <bool kPushed, int64_t kWidth>
  void stride(float* __restrict__ value, float* __restrict__ mean, float* __restrict__ square, const float* __restrict__ g,
              int64_t at, int64_t h) const {
    const int64_t d = kWidth ? kWidth : width_;
    const int64_t middle = std::min(2 * at + h + 1, Powers::kCorrected - 1);
    const Stride s = strides_[h];
    const float rate = rate_ * unbias1_[middle], root = unbias2_[middle], tiny = tiny_, pull = pull_;
    for (int64_t j = 0; j < d; ++j) {
      const float whole = kPushed ? pull * value[j] + g[j] : pull * value[j];
      const float size = rate / (std::sqrt(s.half2 * square[j] + s.fill2 * (whole * whole)) * root + tiny);
      const float straight = size * (s.sum1 * mean[j] + s.fill1 * whole);
      const float way = kPushed ? straight : straight - size * pull * s.slack * straight;
      const float slack = kPushed ? 0.0f : pull * way, average = whole - s.slack2 * slack;
      mean[j] = s.keep1 * mean[j] + s.take1 * whole - s.slack1 * slack;
      square[j] = s.keep2 * square[j] + s.take2 * (average * average);
      value[j] -= way;
    }
  }

  std::shared_ptr<const Powers> powers_;
  const Stride* strides_;
  const float *unbias1_, *unbias2_;
  float rate_, tiny_, pull_;
  int64_t longest_;
  float *values_, *means_, *squares_;
  int32_t* taken_;
  int64_t width_;
};

// Rows of table first make up the steps since last int32 [V], then take one with their gradient if there is one, and are
// then as after `step` steps.
void coupled_adam(const Tensor& table, const Tensor& first, const Tensor& second, const Tensor& last, const Tensor& rows,
                  const std::optional<Tensor>& gradient, double rate, double beta1, double beta2, double eps,
                  double decay, int64_t step) {
  const CoupledAdam adam(table, first, second, last, rate, beta1, beta2, eps, decay);
  check(rows, at::kLong, 1, "rows");
  if (gradient) check_rows(table, rows, *gradient);
  const int64_t width = table.size(1), height = table.size(0), u = rows.numel();
  const int64_t* row = rows.const_data_ptr<int64_t>();
  const float* from = gradient ? gradient->const_data_ptr<float>() : nullptr;
  adam.by_width([&](auto kWidth) {
    at::parallel_for(0, u, grain(8 * width), [&](int64_t begin, int64_t end) {
      CoupledAdam::Fresh fresh;
      for (int64_t k = begin; k < end; ++k) {
        if (k + kAheadRows < end) adam.fetch(row[k + kAheadRows]);
        const int64_t r = row_at(row, k, height);
        adam.catch_up<decltype(kWidth)::value>(r, from ? step - 1 : step, fresh);
        if (from) adam.push<decltype(kWidth)::value>(r, from + k * width, step);
      }
    });
  });
}

}  // namespace
