// Mixtures of experts of one layer.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>
#include <vector>

#include "common.h"
#include "layers.h"

namespace {

// K mixtures of E experts of width H for B rows. A row of z: what every expert's layer gives before its bias and ReLU,
// expert after expert, then the E logits of every mixture's gate.
struct Mixtures {
  const float* bias;  // [E, H]
  int64_t b, k, e, h;

  int64_t experts() const { return e * h; }
  int64_t logits() const { return k * e; }
  int64_t width() const { return experts() + logits(); }

  // Row i of z, and of gates [B, K, E], their softmaxes, and mixed [K, B, H]; sum: room for H values.
  template <typename T>
  void mix(int64_t i, const T* z, T* mixed, float* gates, float* sum) const {
    z += i * width();
    gates += i * logits();
    const T* logit = z + experts();
    for (int64_t n = 0; n < k; ++n, gates += e, logit += e) {
      float largest = widened(logit[0]), total = 0.0f;
      for (int64_t m = 1; m < e; ++m) largest = std::max(largest, widened(logit[m]));
      for (int64_t m = 0; m < e; ++m) total += gates[m] = std::exp(widened(logit[m]) - largest);
      std::fill(sum, sum + h, 0.0f);
      for (int64_t m = 0; m < e; ++m) {
        const float gate = gates[m] /= total;
        const T* __restrict__ expert = z + m * h;
        const float* __restrict__ offset = bias + m * h;
#pragma omp simd
        for (int64_t j = 0; j < h; ++j) sum[j] += gate * std::max(widened(expert[j]) + offset[j], 0.0f);
      }
      T* __restrict__ to = mixed + (n * b + i) * h;
      for (int64_t j = 0; j < h; ++j) to[j] = narrowed(sum[j], T());
    }
  }

  // Row i of the gradient of z from that of mixed, its experts' part added to of_bias [E, H]; along: room for K * E values.
  template <typename T>
  void unmix(int64_t i, const T* gradient, const T* z, const float* gates, T* of_z, float* of_bias, float* sum,
             float* along) const {
    z += i * width();
    of_z += i * width();
    gates += i * logits();
    for (int64_t m = 0; m < e; ++m) {
      const T* __restrict__ expert = z + m * h;
      const float* __restrict__ offset = bias + m * h;
      std::fill(sum, sum + h, 0.0f);
      for (int64_t n = 0; n < k; ++n) {
        const T* __restrict__ g = gradient + (n * b + i) * h;
        const float gate = gates[n * e + m];
        float product = 0.0f;
#pragma omp simd reduction(+ : product)
        for (int64_t j = 0; j < h; ++j) {
          product += widened(g[j]) * std::max(widened(expert[j]) + offset[j], 0.0f);
          sum[j] += gate * widened(g[j]);
        }
        along[n * e + m] = product;
      }
      T* __restrict__ to = of_z + m * h;
      float* __restrict__ total = of_bias + m * h;
#pragma omp simd
      for (int64_t j = 0; j < h; ++j) {
        const T kept = widened(expert[j]) + offset[j] > 0.0f ? narrowed(sum[j], T()) : T(0);
        to[j] = kept;
        total[j] += widened(kept);
      }
    }
    for (int64_t n = 0; n < k; ++n, gates += e, along += e) {
      const float mean = std::inner_product(gates, gates + e, along, 0.0f);
      for (int64_t m = 0; m < e; ++m) of_z[experts() + n * e + m] = narrowed(gates[m] * (along[m] - mean), T());
    }
  }
};

Mixtures mixtures(const Tensor& z, const Tensor& bias, int64_t k) {
  check(z, z.scalar_type(), 2, "z");
  check(bias, at::kFloat, 2, "bias");
  const int64_t e = bias.size(0), h = bias.size(1);
  TORCH_CHECK(k > 0 && e > 0 && z.size(1) == e * (h + k), "shapes do not fit");
  return {bias.const_data_ptr<float>(), z.size(0), k, e, h};
}

// z [B, E * H + K * E], in float32 or bfloat16, as said above, and bias [E, H] -> mixed [K, B, H] in z's type and the
// gates [B, K, E].
std::tuple<Tensor, Tensor> mix(const Tensor& z, const Tensor& bias, int64_t count) {
  const Mixtures shape = mixtures(z, bias, count);
  Tensor mixed = at::empty({shape.k, shape.b, shape.h}, z.options());
  Tensor gates = at::empty({shape.b, shape.k, shape.e}, bias.options());
  float* gate = gates.mutable_data_ptr<float>();
  const auto rows = [&](auto* from, auto* to) {
    at::parallel_for(0, shape.b, grain(shape.width()), [&](int64_t begin, int64_t end) {
      std::vector<float> sum(shape.h);
      for (int64_t i = begin; i < end; ++i) shape.mix(i, from, to, gate, sum.data());
    });
  };
  z.scalar_type() == at::kBFloat16 ? rows(bits(z), writable_bits(mixed))
                                   : rows(z.const_data_ptr<float>(), mixed.mutable_data_ptr<float>());
  return {mixed, gates};
}

// Its gradients, of z in z's type and of bias, from that of mixed.
std::tuple<Tensor, Tensor> mix_backward(const Tensor& gradient, const Tensor& z, const Tensor& bias, const Tensor& gates) {
  check(gradient, z.scalar_type(), 3, "gradient");
  check(gates, at::kFloat, 3, "gates");
  const Mixtures shape = mixtures(z, bias, gates.size(1));
  TORCH_CHECK(gates.size(0) == shape.b && gates.size(2) == shape.e && gradient.size(0) == shape.k &&
                  gradient.size(1) == shape.b && gradient.size(2) == shape.h, "shapes do not fit");
  Tensor of_z = at::empty(z.sizes(), z.options()), of_bias = at::empty(bias.sizes(), bias.options());
  const float* gate = gates.const_data_ptr<float>();
  const auto rows = [&](auto* above, auto* from, auto* to) {
    sum_over_parts(shape.b, shape.experts(), of_bias.mutable_data_ptr<float>(), [&](int64_t i, float* total) {
      thread_local std::vector<float> room;
      room.resize(shape.h + shape.logits());
      shape.unmix(i, above, from, gate, to, total, room.data(), room.data() + shape.h);
    });
  };
  z.scalar_type() == at::kBFloat16
      ? rows(bits(gradient), bits(z), writable_bits(of_z))
      : rows(gradient.const_data_ptr<float>(), z.const_data_ptr<float>(), of_z.mutable_data_ptr<float>());
  return {of_z, of_bias};
}

}  // namespace
