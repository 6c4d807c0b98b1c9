// The fields of a batch, side by side in a row or wherever their vectors are, and what is added up for these.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "common.h"
#include "tiles.h"

namespace {

// Look-ups whose vectors are fetched ahead: of a tile's rows, and where what they give is added.
constexpr int64_t kAheadLookUps = 6, kAheadTargets = 16;

// Of B rows, F fields of D values each. Without places, fields [B, F, D] has them row after row, `stride` apart. With
// places int32 [B, L], fields [U, F / L, D] are vectors, and each of a row's L look-ups has one of them.
struct Fields {
  int64_t b, f, d, look_ups = 1, stride;
  const float* values;
  const int32_t* places = nullptr;

  Fields(const Tensor& fields, const std::optional<Tensor>& places_)
      : b(fields.size(0)), f(fields.size(1)), d(fields.size(2)), stride(fields.stride(0)),
        values(fields.const_data_ptr<float>()) {
    TORCH_CHECK(fields.device().is_cpu() && fields.scalar_type() == at::kFloat && fields.dim() == 3 &&
                    fields.stride(2) == 1 && fields.stride(1) == d,
                "the fields of a row have to lie side by side, in float32 on a CPU");
    if (!places_) return;
    check(*places_, at::kInt, 2, "places");
    places = places_->const_data_ptr<int32_t>();
    b = places_->size(0);
    look_ups = places_->size(1);
    f *= look_ups;
    uint32_t most = 0;  // negative ones are the largest
    for (int64_t i = 0; i < b * look_ups; ++i) most = std::max(most, static_cast<uint32_t>(places[i]));
    TORCH_CHECK_INDEX(most < fields.size(0) || b * look_ups == 0, "a place behind the last of ", fields.size(0),
                      " vectors");
  }

  // Values that a look-up gives, and that a row has.
  int64_t width() const { return f / look_ups * d; }
  int64_t of_row() const { return f * d; }

  // Where the values begin that look-up c gives row i.
  const float* at(int64_t i, int64_t c) const { return values + (places ? places[i * look_ups + c] : i) * stride; }

  // Rows in a tile from `first` on.
  int64_t count(int64_t first) const { return std::min(kLanes, b - first); }

  // These, one value of all rows after the other.
  void load(Tile& x, int64_t first, std::vector<float>& room) const {
    const int64_t n = width();
    if (n % kLanes && places) {
      copy(room, first, d);
      x.load(room.data(), of_row(), count(first));
      return;
    }
    for (int64_t c = 0; c < look_ups; ++c) {
      if (places && c + kAheadLookUps < look_ups)
        for (int64_t r = 0; r < count(first); ++r) __builtin_prefetch(at(first + r, c + kAheadLookUps), 0, 3);
      x.load([=, this](int64_t r) { return at(first + r, c); }, c * n, n, count(first));
    }
  }

  // These, row after row; each field takes up `wide` values, of which those behind its own are zero, as are rows that are
  // not there.
  void copy(std::vector<float>& to, int64_t first, int64_t wide) const {
    to.resize(kLanes * f * wide);
    const int64_t rows = count(first), own = f / look_ups, n = width();
    if (rows < kLanes || wide > d) std::fill(to.begin(), to.end(), 0.0f);
    float* into = to.data();
    if (places && wide == d && n % kLanes == 0) {
      const int32_t* place = places + first * look_ups;
      for (int64_t i = 0; i < rows * look_ups; ++i)
        for (int64_t j = 0; j < n; j += kLanes, into += kLanes) lanes_at(into) = lanes_at(values + place[i] * stride + j);
      return;
    }
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < look_ups; ++c)
        for (int64_t k = 0; k < own; ++k, into += wide)
          for (int64_t j = 0; j < d; ++j) into[j] = at(first + r, c)[k * d + j];
  }
};

// Lines of memory that are fetched while a tile is computed, kLines with each of its combinations: those of the tile at
// row `first`.
class Ahead {
 public:
  Ahead(const Fields& fields_, int64_t first)
      : fields(fields_), values(fields.values + first * fields.stride),
        places(fields.places ? fields.places + first * fields.look_ups : nullptr),
        lines(std::max<int64_t>(0, fields.count(first)) * (fields.places ? fields.look_ups : fields.stride / kLine)) {}

  void of(int64_t k, int64_t n) const {
    for (int64_t i = k * kLines; i < std::min(lines, (k + n) * kLines); ++i)
      __builtin_prefetch(fields.places ? fields.values + places[i] * fields.stride : values + i * kLine, 0, 3);
  }

 private:
  static constexpr int64_t kLine = 16, kLines = 2;
  const Fields& fields;
  const float* values;
  const int32_t* places;
  int64_t lines;
};

// The gradient of fields, in their shape. What several look-ups of a vector give is added up, by every share of the rows
// for itself, of which there are as many on any machine; what a single one gives is just written.
class FieldGradients {
 public:
  // begins int32 [U] of group() says where the look-ups of each vector begin, if there are places.
  FieldGradients(const Tensor& fields, const Fields& of_, const std::optional<Tensor>& begins, int64_t parts_)
      : result(at::empty(fields.sizes(), fields.options())), of(of_), parts(of.places ? parts_ : 0), width(of.width()),
        out(result.mutable_data_ptr<float>()) {
    if (!of.places) return;
    TORCH_CHECK(begins, "the gradient by vector needs where the look-ups of each begin");
    check(*begins, at::kInt, 1, "begins");
    const int64_t u = begins->numel(), n = of.b * of.look_ups;
    TORCH_CHECK(u == fields.size(0), "shapes do not fit");
    const int32_t* begin = begins->const_data_ptr<int32_t>();
    turn.resize(u);
    for (int64_t k = 0; k < u; ++k) {
      const bool single = (k + 1 < u ? begin[k + 1] : n) - begin[k] == 1;
      turn[k] = static_cast<int32_t>(single ? ~k : several.size());
      if (!single) several.push_back(k);
    }
    result.zero_();
    step = static_cast<int64_t>(several.size()) * width;
    sums = at::empty({parts, step}, fields.options());
    sum = sums.mutable_data_ptr<float>();
  }

  // Before a part adds anything.
  void open(int64_t part) {
    if (of.places) std::fill_n(sum + part * step, step, 0.0f);
  }

  // Adds what the tile at row `first` gets.
  void add(int64_t part, const Tile& y, int64_t first, std::vector<float>& room) {
    const int64_t wide = of.of_row();
    if (!of.places) return y.store(out + first * wide, wide, of.count(first));
    room.resize(kLanes * wide);
    y.store(room.data(), wide, of.count(first));
    // Without a branch, which no processor would foresee.
    const std::array<float*, 2> to = {sum + part * step, out};
    const int32_t *places = of.places + first * of.look_ups, n = of.count(first) * of.look_ups;
    const float* from = room.data();
    const auto target = [&](int64_t i) {
      const int32_t at = turn[places[i]], single = at >> 31;
      return to[-single] + static_cast<int64_t>(at ^ single) * width;
    };
    for (int64_t i = 0; i < n; ++i) {
      if (i + kAheadTargets < n) __builtin_prefetch(target(i + kAheadTargets), 1, 3);
      float* into = target(i);
      if (width % kLanes == 0)
        for (int64_t j = 0; j < width; j += kLanes, from += kLanes) lanes_at(into + j) += lanes_at(from);
      else
        for (int64_t j = 0; j < width; ++j) into[j] += *from++;
    }
  }

  // The gradient, once every part has added everything.
  Tensor close() {
    const int64_t n = static_cast<int64_t>(several.size());
    at::parallel_for(0, parts ? n : 0, grain(parts * width), [&](int64_t begin, int64_t end) {
      for (int64_t part = 1; part < parts; ++part) {
        const float* from = sum + part * step;
        for (int64_t k = begin * width; k < end * width; ++k) sum[k] += from[k];
      }
      for (int64_t k = begin; k < end; ++k) std::copy_n(sum + k * width, width, out + several[k] * width);
    });
    return result;
  }

 private:
  Tensor result, sums;  // sums [parts, vectors that several look-ups have, width]
  const Fields& of;
  int64_t parts, width, step = 0;
  float *out, *sum = nullptr;
  std::vector<int64_t> several;  // these vectors
  std::vector<int32_t> turn;     // of each vector among them; of what only one has, ~vector
};

}  // namespace
