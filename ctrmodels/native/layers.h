// Layers: fields laid side by side, activations and outputs of MLPs.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <bit>
#include <numeric>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common.h"

namespace {

// Where the parts of a row go: its fields and numbers side by side, and the sums that its pairs need.
template <typename T>
struct Layout {
  const float* numbers;  // [B, N]
  T* flat;               // [B, W]
  float *products, *sums;  // [B] and [B, D], or null if no pairs are asked for
  int64_t f, d, n, w;

  // x: the F fields of row i, one after the other; square: room for D values.
  void row(int64_t i, const float* x, float* square) const {
    T* to = flat + i * w;
    for (int64_t j = 0; j < f * d; ++j) to[j] = static_cast<T>(x[j]);
    for (int64_t j = 0; j < n; ++j) to[f * d + j] = static_cast<T>(numbers[i * n + j]);
    std::fill(to + f * d + n, to + w, T(0));
    if (!products) return;
    float* sum = sums + i * d;
    std::fill(sum, sum + d, 0.0f);
    std::fill(square, square + d, 0.0f);
    for (int64_t k = 0; k < f; ++k, x += d)
      for (int64_t j = 0; j < d; ++j) {
        sum[j] += x[j];
        square[j] += x[j] * x[j];
      }
    float twice = 0.0f;
    for (int64_t j = 0; j < d; ++j) twice += sum[j] * sum[j] - square[j];
    products[i] = 0.5f * twice;
  }
};

// flat [B, W], W >= F * D + N, filled up with zeros, in bfloat16 if asked; and if pairs are asked for, the sum of all
// pairs' inner products [B] and the fields' sum [B, D], else two empty tensors. fill(layout) writes the rows.
template <typename Fill>
std::tuple<Tensor, Tensor, Tensor> laid_out(int64_t b, int64_t f, int64_t d, const Tensor& numeric, int64_t width,
                                            bool pairs, bool bf16, const Fill& fill) {
  check(numeric, at::kFloat, 2, "numeric");
  const int64_t n = numeric.size(1);
  TORCH_CHECK(numeric.size(0) == b && width >= f * d + n, "shapes do not fit");
  Tensor flat = at::empty({b, width}, numeric.options().dtype(bf16 ? at::kBFloat16 : at::kFloat));
  Tensor products = at::empty({pairs ? b : 0}, numeric.options()), sums = at::empty({pairs ? b : 0, d}, numeric.options());
  const auto with = [&](auto* to) {
    fill(Layout<std::remove_pointer_t<decltype(to)>>{
        numeric.const_data_ptr<float>(), to, pairs ? products.mutable_data_ptr<float>() : nullptr,
        pairs ? sums.mutable_data_ptr<float>() : nullptr, f, d, n, width});
  };
  bf16 ? with(flat.mutable_data_ptr<BFloat16>()) : with(flat.mutable_data_ptr<float>());
  return {flat, products, sums};
}

// fields [B, F, D] and numeric [B, N] -> what laid_out() says.
std::tuple<Tensor, Tensor, Tensor> flatten(const Tensor& fields, const Tensor& numeric, int64_t width, bool pairs,
                                           bool bf16) {
  check(fields, at::kFloat, 3, "fields");
  const int64_t b = fields.size(0), f = fields.size(1), d = fields.size(2);
  const float* x = fields.const_data_ptr<float>();
  return laid_out(b, f, d, numeric, width, pairs, bf16, [&](const auto& layout) {
    at::parallel_for(0, b, grain(width), [&](int64_t begin, int64_t end) {
      std::vector<float> square(d);
      for (int64_t i = begin; i < end; ++i) layout.row(i, x + i * f * d, square.data());
    });
  });
}

// The same of table [V, D] looked up at index int32 [B * F], field after field; with the fields [B, F, D] themselves, which
// in float32 are the first columns of flat, and in bfloat16 are none, [0, F, D], unless they are asked for.
std::tuple<Tensor, Tensor, Tensor, Tensor> gather_flat(const Tensor& table, const Tensor& index, const Tensor& numeric,
                                                       int64_t width, bool pairs, bool bf16, bool asked) {
  check(table, at::kFloat, 2, "table");
  check(index, at::kInt, 1, "index");
  const int64_t b = numeric.size(0), d = table.size(1), height = table.size(0), f = b ? index.numel() / b : 0;
  TORCH_CHECK(f * b == index.numel(), index.numel(), " look-ups are not ", b, " rows");
  const int32_t* rows = index.const_data_ptr<int32_t>();
  const float* from = table.const_data_ptr<float>();
  Tensor fields = at::empty({bf16 && asked ? b : 0, f, d}, table.options());
  float* apart = fields.mutable_data_ptr<float>();
  auto [flat, products, sums] = laid_out(b, f, d, numeric, width, pairs, bf16, [&](const auto& layout) {
    at::parallel_for(0, b, grain(width), [&](int64_t begin, int64_t end) {
      std::vector<float> square(d), room(asked ? 0 : f * d);
      for (int64_t i = begin; i < end; ++i) {
        float* to = asked ? apart + i * f * d : room.data();
        if constexpr (std::is_same_v<std::remove_cvref_t<decltype(*layout.flat)>, float>) to = layout.flat + i * width;
        for (int64_t k = i * f; k < (i + 1) * f; ++k) {
          if (k + kAhead < end * f) __builtin_prefetch(from + static_cast<int64_t>(rows[k + kAhead]) * d);
          std::copy_n(from + row_at(rows, k, height) * d, d, to + (k - i * f) * d);
        }
        layout.row(i, to, square.data());
      }
    });
  });
  if (!bf16) fields = flat.as_strided({b, f, d}, {width, d, 1});
  return {fields, flat, products, sums};
}

// The gradients of flat [B, W], of the fields [B, F, D] and of the pairs [B], where there are such, and what they are of: x
// are the looked-up vectors, either the fields, `gap` values apart from row to row, or one by row of the table, [U, D].
// order [n] and begins [U] are those of group().
struct FlatGradients {
  const std::optional<Tensor>&flat, &of_fields, &of_pairs;
  const Tensor &x, &sums, &order, &begins;
  int64_t n = order.numel(), u = begins.numel(), d = x.size(-1);
  int64_t b = flat ? flat->size(0) : of_fields ? of_fields->size(0) : of_pairs ? of_pairs->numel() : 0;
  int64_t f = b ? n / b : 0;
  bool by_row = x.dim() == 2;

  void check_all() const {
    check(order, at::kInt, 1, "order");
    check(begins, at::kInt, 1, "begins");
    TORCH_CHECK(x.scalar_type() == at::kFloat && x.stride(-1) == 1 && x.stride(-2) == d &&
                    (by_row ? x.size(0) == u : x.dim() == 3 && x.size(0) == b && x.size(1) == f),
                "the fields of a row have to lie side by side, in float32");
    TORCH_CHECK(n == b * f, n, " look-ups of ", b, " rows of ", f, " fields");
    if (of_fields) {
      check(*of_fields, at::kFloat, 3, "the gradient of the fields");
      TORCH_CHECK(of_fields->numel() == n * d, "shapes do not fit");
    }
    if (of_pairs) {
      check(*of_pairs, at::kFloat, 1, "the gradient of the pairs");
      check(sums, at::kFloat, 2, "sums");
      TORCH_CHECK(of_pairs->numel() == b && sums.size(0) == b && sums.size(1) == d, "shapes do not fit");
    }
    if (flat) {
      check(*flat, flat->scalar_type(), 2, "the gradient of flat");
      TORCH_CHECK(flat->size(0) == b && flat->size(1) >= f * d, "shapes do not fit");
    }
  }

  // finish(k, the gradient of the table's row number k among the U) for all of them.
  template <typename Finish>
  void by_rows(const Finish& finish) const {
    check_all();
    const auto add_up = [&]<typename T>(const T* from) {
      if (d == 16)
        rows_of<T, 16>(from, finish);
      else if (d == 8)
        rows_of<T, 8>(from, finish);
      else
        rows_of<T, 0>(from, finish);
    };
    if (!flat)
      add_up(static_cast<const float*>(nullptr));
    else if (flat->scalar_type() == at::kBFloat16)
      add_up(flat->const_data_ptr<BFloat16>());
    else
      add_up(flat->const_data_ptr<float>());
  }

 private:
  template <typename T, int64_t kWidth, typename Finish>
  void rows_of(const T* from, const Finish& finish) const;
};

template <typename T, int64_t kWidth, typename Finish>
void FlatGradients::rows_of(const T* from, const Finish& finish) const {
  const int64_t d = kWidth ? kWidth : this->d, n = this->n, u = this->u;
  const bool by_row = this->by_row;
  const int32_t *order = this->order.const_data_ptr<int32_t>(), *starts = begins.const_data_ptr<int32_t>();
  const float* g_fields = of_fields ? of_fields->const_data_ptr<float>() : nullptr;
  const float* g_pairs = of_pairs ? of_pairs->const_data_ptr<float>() : nullptr;
  const float *vectors = x.const_data_ptr<float>(), *sums = g_pairs ? this->sums.const_data_ptr<float>() : nullptr;
  const int64_t gap = by_row ? 0 : x.stride(0) - f * d, skip = flat ? flat->size(1) - f * d : 0;  // behind the fields
  // The row of a look-up: a product is quicker than a division, and half a look-up away from where it could round wrong.
  const double share = 1.0 / static_cast<double>(f);
  const auto row_of = [=](int32_t i) { return static_cast<int64_t>((i + 0.5) * share); };
  at::parallel_for(0, n, grain(d), [&](int64_t begin, int64_t end) {
    const auto row_from = [&](int64_t i) { return std::lower_bound(starts, starts + u, i) - starts; };
    std::array<float, kWidth ? kWidth : 1> fixed;
    std::vector<float> room(kWidth ? 0 : d);
    float* sum = kWidth ? fixed.data() : room.data();
    const auto in_flat = [&](int32_t i, int64_t row) { return from + i * d + row * skip; };
    for (int64_t k = row_from(begin), last = row_from(end); k < last; ++k) {
      // All look-ups of a table's row have the same values: the first one stands for the row.
      const auto values = [&](int64_t r) {
        const int32_t first = order[starts[r]];
        return vectors + first * d + row_of(first) * gap;
      };
      if (g_pairs && !by_row && k + kAheadRows < u) __builtin_prefetch(values(k + kAheadRows));
      std::fill(sum, sum + d, 0.0f);
      float pull = 0.0f;
      for (int64_t i = starts[k], stop = k + 1 < u ? starts[k + 1] : n; i < stop; ++i) {
        const int64_t row = row_of(order[i]);
        if (from) {
          if (i + kAheadRows < n) {
            const int32_t ahead = order[i + kAheadRows];
            __builtin_prefetch(in_flat(ahead, row_of(ahead)));
          }
          const T* g = in_flat(order[i], row);
          for (int64_t j = 0; j < d; ++j) sum[j] += static_cast<float>(g[j]);
        }
        if (g_fields) {
          if (i + kAheadRows < n) __builtin_prefetch(g_fields + static_cast<int64_t>(order[i + kAheadRows]) * d);
          const float* g = g_fields + static_cast<int64_t>(order[i]) * d;
          for (int64_t j = 0; j < d; ++j) sum[j] += g[j];
        }
        if (g_pairs) {
          pull += g_pairs[row];
          for (int64_t j = 0; j < d; ++j) sum[j] += g_pairs[row] * sums[row * d + j];
        }
      }
      if (g_pairs) {
        const float* vector = by_row ? vectors + k * d : values(k);
        for (int64_t j = 0; j < d; ++j) sum[j] -= pull * vector[j];
      }
      const auto done = fixed;  // a copy, so that the sum stays in registers whatever finish() is
      finish(k, kWidth ? done.data() : sum);
    }
  });
}

// Its gradient by rows of the table, [U, D].
Tensor gather_flat_backward(const std::optional<Tensor>& flat, const std::optional<Tensor>& of_fields,
                            const std::optional<Tensor>& of_pairs, const Tensor& x, const Tensor& sums,
                            const Tensor& order, const Tensor& begins) {
  const FlatGradients gradients{flat, of_fields, of_pairs, x, sums, order, begins};
  const int64_t d = gradients.d;
  Tensor result = at::empty({gradients.u, d}, x.options());
  float* to = result.mutable_data_ptr<float>();
  gradients.by_rows([=](int64_t k, const float* sum) { std::copy_n(sum, d, to + k * d); });
  return result;
}

template <typename T>
void gather_back(const Tensor& flat_gradient, const Tensor& pair_gradient, const Tensor& fields, const Tensor& total,
                 const Tensor& result) {
  const int64_t b = fields.size(0), f = fields.size(1), d = fields.size(2), w = flat_gradient.size(1);
  const T* from = flat_gradient.const_data_ptr<T>();
  const float* x = fields.const_data_ptr<float>();
  const float* g = pair_gradient.numel() ? pair_gradient.const_data_ptr<float>() : nullptr;
  const float* sums = g ? total.const_data_ptr<float>() : nullptr;
  float* out = result.mutable_data_ptr<float>();
  at::parallel_for(0, b, grain(w), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t k = 0; k < f * d; k += d) {
        const T* flat = from + i * w + k;
        const float* field = x + i * f * d + k;
        float* to = out + i * f * d + k;
        if (g)
          for (int64_t j = 0; j < d; ++j) to[j] = static_cast<float>(flat[j]) + g[i] * (sums[i * d + j] - field[j]);
        else
          for (int64_t j = 0; j < d; ++j) to[j] = static_cast<float>(flat[j]);
      }
  });
}

// Gradient of the fields: what flat's says, in either type, and g[b] * (total[b] - fields[b, f]) of the pairs, if their
// gradient is not empty.
Tensor flatten_backward(const Tensor& flat_gradient, const Tensor& pair_gradient, const Tensor& fields,
                        const Tensor& total) {
  check(flat_gradient, flat_gradient.scalar_type(), 2, "the gradient of flat");
  check(fields, at::kFloat, 3, "fields");
  check(pair_gradient, at::kFloat, 1, "the gradient of the pairs");
  check(total, at::kFloat, 2, "total");
  const int64_t b = fields.size(0);
  TORCH_CHECK(flat_gradient.size(0) == b && flat_gradient.size(1) >= fields.size(1) * fields.size(2) &&
                  (pair_gradient.numel() == 0 || (pair_gradient.numel() == b && total.size(0) == b)),
              "shapes do not fit");
  Tensor result = at::empty(fields.sizes(), fields.options());
  if (flat_gradient.scalar_type() == at::kBFloat16)
    gather_back<BFloat16>(flat_gradient, pair_gradient, fields, total, result);
  else
    gather_back<float>(flat_gradient, pair_gradient, fields, total, result);
  return result;
}

float widened(float value) { return value; }
float widened(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// T holds the bits: whether a number is positive, and where it is copied, needs no arithmetic.
template <typename T>
void rectify(const T* gradient, const T* output, T* result, float* sums, int64_t b, int64_t w) {
  sum_over_parts(b, w, sums, [&](int64_t i, float* sum) {
    const T *g = gradient + i * w, *y = output + i * w;
    T* out = result + i * w;
    for (int64_t j = 0; j < w; ++j) {
      const T value = widened(y[j]) > 0.0f ? g[j] : T(0);
      out[j] = value;
      sum[j] += widened(value);
    }
  });
}

template <typename T>
void dot_rows(const T* x, const float* weight, float bias, float* result, int64_t b, int64_t w) {
  constexpr int64_t kLanes = 16;  // sums side by side, which a compiler may not make of one sum by itself
  at::parallel_for(0, b, grain(w), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::array<float, kLanes> sums{};
      const T* row = x + i * w;
      int64_t j = 0;
      for (; j + kLanes <= w; j += kLanes)
        for (int64_t k = 0; k < kLanes; ++k) sums[k] += widened(row[j + k]) * weight[j + k];
      for (; j < w; ++j) sums[0] += widened(row[j]) * weight[j];
      result[i] = std::accumulate(sums.begin(), sums.end(), bias);
    }
  });
}

float narrowed(float value, float) { return value; }
uint16_t narrowed(float value, uint16_t) { return c10::detail::round_to_nearest_even(value); }

// Rectified: of a dot product with the output of a ReLU, whose gradient in turn is wanted; of_bias are its sums.
template <bool kRectified, typename T>
void spread_rows(const float* gradient, const T* x, const float* weight, T* result, float* sums, int64_t b, int64_t w) {
  sum_over_parts(b, kRectified ? 2 * w : w, sums, [&](int64_t i, float* sum) {
    const float g = gradient[i];
    const T* __restrict__ row = x + i * w;
    T* __restrict__ out = result + i * w;
    float* __restrict__ of_weight = sum;
    float* __restrict__ of_bias = sum + w;
    for (int64_t j = 0; j < w; ++j) {
      const float value = widened(row[j]);
      const T spread = narrowed(g * weight[j], T());
      const T kept = !kRectified || value > 0.0f ? spread : T(0);
      out[j] = kept;
      of_weight[j] += g * value;
      if (kRectified) of_bias[j] += widened(kept);
    }
  });
}

const uint16_t* bits(const Tensor& t) { return static_cast<const uint16_t*>(t.const_data_ptr()); }
uint16_t* writable_bits(const Tensor& t) { return static_cast<uint16_t*>(t.data_ptr()); }

// A linear map to one number, in float32 whatever the type of x: x [B, W], weight [W], bias [1] -> [B].
Tensor dot(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  check(x, x.scalar_type(), 2, "x");
  check(weight, at::kFloat, 1, "weight");
  check(bias, at::kFloat, 1, "bias");
  TORCH_CHECK(weight.numel() == x.size(1) && bias.numel() == 1, "shapes do not fit");
  Tensor result = at::empty({x.size(0)}, weight.options());
  const float *w = weight.const_data_ptr<float>(), b = *bias.const_data_ptr<float>();
  if (x.scalar_type() == at::kBFloat16)
    dot_rows(bits(x), w, b, result.mutable_data_ptr<float>(), x.size(0), x.size(1));
  else
    dot_rows(x.const_data_ptr<float>(), w, b, result.mutable_data_ptr<float>(), x.size(0), x.size(1));
  return result;
}

template <bool kRectified>
std::tuple<Tensor, Tensor> spread(const Tensor& gradient, const Tensor& x, const Tensor& weight) {
  check(gradient, at::kFloat, 1, "gradient");
  check(x, x.scalar_type(), 2, "x");
  check(weight, at::kFloat, 1, "weight");
  const int64_t b = x.size(0), w = x.size(1);
  TORCH_CHECK(gradient.numel() == b && weight.numel() == w, "shapes do not fit");
  Tensor result = at::empty(x.sizes(), x.options()), sums = at::empty({kRectified ? 2 : 1, w}, weight.options());
  const float *g = gradient.const_data_ptr<float>(), *v = weight.const_data_ptr<float>();
  float* sum = sums.mutable_data_ptr<float>();
  if (x.scalar_type() == at::kBFloat16)
    spread_rows<kRectified>(g, bits(x), v, writable_bits(result), sum, b, w);
  else
    spread_rows<kRectified>(g, x.const_data_ptr<float>(), v, result.mutable_data_ptr<float>(), sum, b, w);
  return {result, sums};
}

// Its gradients: of x, in x's type, and of weight.
std::tuple<Tensor, Tensor> dot_backward(const Tensor& gradient, const Tensor& x, const Tensor& weight) {
  auto [result, sums] = spread<false>(gradient, x, weight);
  return {result, sums[0]};
}

// The same where x = relu(z): the gradient of z, that of weight, and the sum of the first over the rows.
std::tuple<Tensor, Tensor, Tensor> dot_relu_backward(const Tensor& gradient, const Tensor& x, const Tensor& weight) {
  auto [result, sums] = spread<true>(gradient, x, weight);
  return {result, sums[0], sums[1]};
}

// Backward of y = relu(z): the gradient of z, [B, W] as y, into result, which may be the gradient of y itself; its sum
// over the rows, float32 [W].
Tensor relu_backward(const Tensor& gradient, const Tensor& output, const Tensor& result) {
  check(output, output.scalar_type(), 2, "output");
  for (const Tensor& t : {gradient, result}) {
    check(t, output.scalar_type(), 2, "gradient");
    TORCH_CHECK(t.sizes() == output.sizes(), "shapes differ");
  }
  const int64_t b = output.size(0), w = output.size(1);
  Tensor sums = at::empty({w}, output.options().dtype(at::kFloat));
  float* sum = sums.mutable_data_ptr<float>();
  if (output.scalar_type() == at::kBFloat16) {
    rectify(bits(gradient), bits(output), writable_bits(result), sum, b, w);
  } else {
    rectify(gradient.const_data_ptr<float>(), output.const_data_ptr<float>(), result.mutable_data_ptr<float>(), sum,
            b, w);
  }
  return sums;
}

}  // namespace
