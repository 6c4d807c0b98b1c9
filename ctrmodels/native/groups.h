// Groups of vectors: weighted sums and their powers, of which nothing but the result is written down.
//
// Of a row's F vectors n_f [D], G groups of one order p, and weights inside and own [F, G]:
//   g_j = sum_f inside_fj n_f,  and for p = 1: y_j = g_j,  for p > 1: y_j = sum_d g_jd^p - lambda sum_f (own_fj n_fd)^p.
// The backward pass computes g again, which is quicker than to read it. What the look-ups of one vector give is added up
// before it is multiplied: there are fewer vectors than look-ups.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "common.h"
#include "interactions.h"

namespace {

// kOrder 0 stands for any order.
template <int64_t kOrder, typename T>
T power(T x, int64_t order) {
  if constexpr (kOrder > 0) order = kOrder;
  T found = x - x + 1.0f;
  for (int64_t k = 0; k < order; ++k) found = k ? found * x : x;
  return found;
}

// Lane l: the sum of all lanes of vector l.
template <int64_t kStep = kLanes / 2>
[[gnu::always_inline]] inline Lanes sums_of_lanes(std::array<Lanes, kLanes>& vectors) {
  for (int64_t i = 0; i < kStep; ++i) {
    swap_halves<kStep>(vectors[i], vectors[i + kStep], std::make_index_sequence<kLanes>());
    vectors[i] += vectors[i + kStep];
  }
  if constexpr (kStep > 1)
    return sums_of_lanes<kStep / 2>(vectors);
  else
    return vectors[0];
}

// Rows of numbers in whole registers, filled up with zeros where they are shorter.
struct Columns {
  std::vector<float> filled;
  const float* values;
  int64_t stride;

  Columns(const float* from, int64_t rows, int64_t width, int64_t registers) : values(from), stride(registers) {
    if (width == registers) return;
    filled.resize(rows * registers);
    for (int64_t i = 0; i < rows; ++i) std::copy_n(from + i * width, width, filled.data() + i * registers);
    values = filled.data();
  }
  const float* row(int64_t i) const { return values + i * stride; }
};

// The first `count` lanes.
void put(float* to, const Lanes& values, int64_t count) {
  std::copy_n(reinterpret_cast<const float*>(&values), count, to);
}
void put(BFloat16* to, const Lanes& values, int64_t count) {
  for (int64_t l = 0; l < count; ++l) to[l] = values[l];
}

// Two registers in memory, in float32, or in one, rounded to bfloat16: one in the higher halves, one in the lower.
template <bool kShort>
struct Pair {
  using Bits = uint32_t __attribute__((vector_size(kLanes * sizeof(uint32_t))));
  static constexpr int64_t kRegisters = kShort ? 1 : 2;

  static std::array<Lanes, 2> read(const Lanes* from) {
    if constexpr (!kShort) return {from[0], from[1]};
    const Bits bits = reinterpret_cast<Bits>(from[0]);
    return {reinterpret_cast<Lanes>(bits & 0xffff0000), reinterpret_cast<Lanes>(bits << 16)};
  }
  static void write(Lanes* to, Lanes high, Lanes low) {
    if constexpr (kShort) {
      to[0] = reinterpret_cast<Lanes>((rounded(high) & 0xffff0000) | (rounded(low) >> 16));
    } else {
      to[0] = high;
      to[1] = low;
    }
  }

 private:
  static Bits rounded(Lanes values) {
    const Bits bits = reinterpret_cast<Bits>(values);
    return bits + 0x7fff + ((bits >> 16) & 1);
  }
};

// Some columns of a tensor [B, W] in float32 or bfloat16: `pieces` of `width` numbers each side by side, every one of which
// is in registers of its own here.
struct Above {
  int64_t pieces, registers;
  Tensor room;
  const LanesAnywhere* values;

  Above(const Tensor& from, int64_t column, int64_t pieces_, int64_t width)
      : pieces(pieces_), registers((width + kLanes - 1) / kLanes),
        room(at::empty({from.size(0), pieces * registers * kLanes}, from.options().dtype(at::kFloat))),
        values(&lanes_at(room.const_data_ptr<float>())) {
    from.scalar_type() == at::kBFloat16 ? fill(from.const_data_ptr<BFloat16>(), from.size(1), column, width)
                                        : fill(from.const_data_ptr<float>(), from.size(1), column, width);
  }

  // Piece j of row i.
  const LanesAnywhere* at(int64_t i, int64_t j) const { return values + (i * pieces + j) * registers; }

 private:
  template <typename T>
  void fill(const T* from, int64_t stride, int64_t column, int64_t width) {
    float* to = room.mutable_data_ptr<float>();
    const int64_t wide = registers * kLanes;
    at::parallel_for(0, room.size(0), grain(pieces * wide), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t j = 0; j < pieces; ++j)
          for (int64_t k = 0; k < wide; k += kLanes) {
            const T* __restrict__ piece = from + i * stride + column + j * width + k;
            float* __restrict__ found = to + (i * pieces + j) * wide + k;
            if (k + kLanes <= width)
              for (int64_t l = 0; l < kLanes; ++l) found[l] = static_cast<float>(piece[l]);
            else
              for (int64_t l = 0; l < kLanes; ++l) found[l] = k + l < width ? static_cast<float>(piece[l]) : 0.0f;
          }
    });
  }
};

// F vectors for each of B rows: places int32 [B * F] among vectors [N, D], or row after row without. order and begins of
// group() say, for a backward pass by vector, where each is looked up: once, in turn, without places.
struct LookedUp {
  int64_t n, d, f, b;
  const float* vectors;
  const int32_t *places = nullptr, *order = nullptr, *begins = nullptr;
  double share;

  LookedUp(const Tensor& vectors_, const std::optional<Tensor>& places_, int64_t f_)
      : n(vectors_.size(0)), d(vectors_.size(1)), f(f_), share(1.0 / static_cast<double>(f_)) {
    check(vectors_, at::kFloat, 2, "vectors");
    vectors = vectors_.const_data_ptr<float>();
    if (places_) {
      check(*places_, at::kInt, 1, "places");
      places = places_->const_data_ptr<int32_t>();
      uint32_t most = 0;  // negative ones are the largest
      for (int64_t i = 0; i < places_->numel(); ++i) most = std::max(most, static_cast<uint32_t>(places[i]));
      TORCH_CHECK_INDEX(most < n || places_->numel() == 0, "a place behind the last of ", n, " vectors");
    }
    const int64_t look_ups = places_ ? places_->numel() : n;
    TORCH_CHECK(f > 0 && look_ups % f == 0, look_ups, " vectors are not rows of ", f);
    b = look_ups / f;
  }

  void by_vector(const std::optional<Tensor>& order_, const std::optional<Tensor>& begins_) {
    if (!places) return;
    TORCH_CHECK(order_ && begins_, "the gradient by vector needs the look-ups of each");
    check(*order_, at::kInt, 1, "order");
    check(*begins_, at::kInt, 1, "begins");
    TORCH_CHECK(order_->numel() == b * f && begins_->numel() == n, "shapes do not fit");
    order = order_->const_data_ptr<int32_t>();
    begins = begins_->const_data_ptr<int32_t>();
  }

  void check_columns(const Tensor& t, int64_t column, int64_t width) const {
    check(t, t.scalar_type() == at::kBFloat16 ? at::kBFloat16 : at::kFloat, 2, "what groups give");
    TORCH_CHECK(t.size(0) == b && column >= 0 && column + width <= t.size(1), "shapes do not fit");
  }

  // As many on any machine.
  int64_t parts() const { return std::clamp<int64_t>(b * f * d / kGrain, 1, 16); }

  // Which vector is that of field c in row i.
  int64_t place(int64_t i, int64_t c) const { return places ? places[i * f + c] : i * f + c; }

  // The vectors of row i, of `columns`; those of the next one are fetched.
  void of_row(int64_t i, const Columns& columns, const float** found) const {
    const int64_t next = std::min(i + 1, b - 1);
    for (int64_t c = 0; c < f; ++c) {
      found[c] = columns.row(place(i, c));
      if (places) __builtin_prefetch(columns.row(places[next * f + c]));
    }
  }

  // The row of a look-up: a product is quicker than a division, and half a look-up away from where it could round wrong.
  int64_t row_of(int64_t look_up) const { return static_cast<int64_t>((static_cast<double>(look_up) + 0.5) * share); }

  // work(k, its field, its look-ups from `first` to `last`) for every vector of a part.
  template <typename Work>
  void of_part(int64_t part, int64_t parts, const Work& work) const {
    const int64_t look_ups = b * f;
    const auto from = [&](int64_t i) { return begins ? std::lower_bound(begins, begins + n, i) - begins : i; };
    const int64_t end = from(look_ups * (part + 1) / parts);
    for (int64_t k = from(look_ups * part / parts); k < end; ++k) {
      const int64_t first = begins ? begins[k] : k, last = begins ? (k + 1 < n ? begins[k + 1] : look_ups) : k + 1;
      const int64_t look_up = order ? order[first] : k;
      work(k, look_up - row_of(look_up) * f, first, last);
    }
  }

  // The row of look-up number i in the order of the vectors.
  int64_t row_of_turn(int64_t i) const { return row_of(order ? order[i] : i); }
};

// Weights [F, G], each field's in registers of its own.
std::vector<Lanes> by_field(const Tensor& weights, int64_t registers) {
  const int64_t f = weights.size(0), g = weights.size(1);
  std::vector<Lanes> found(f * registers);
  for (int64_t c = 0; c < f; ++c)
    std::copy_n(weights.const_data_ptr<float>() + c * g, g, reinterpret_cast<float*>(&found[c * registers]));
  return found;
}

// Weighted sums, a register for some dimensions of one group.
struct GroupSums {
  static constexpr int64_t kGroups = 4;

  const LookedUp& of;
  int64_t g, padded, wide;  // groups and dimensions, in whole blocks
  Columns vectors;
  std::vector<float> weights;  // [F, padded]

  GroupSums(const LookedUp& of_, const Tensor& inside)
      : of(of_), g(inside.size(1)), padded(whole(g, kGroups)), wide(whole(of.d, kLanes)),
        vectors(of.vectors, of.n, of.d, wide), weights(of.f * padded) {
    for (int64_t c = 0; c < of.f; ++c)
      std::copy_n(inside.const_data_ptr<float>() + c * g, g, weights.data() + c * padded);
  }

  // -> y [B, G * D] of rows that begin `stride` apart
  template <typename T>
  void forward(T* y, int64_t stride) const {
    at::parallel_for(0, of.b, grain(of.f * of.d), [&](int64_t begin, int64_t end) {
      std::vector<const float*> row(of.f);
      for (int64_t i = begin; i < end; ++i) {
        of.of_row(i, vectors, row.data());
        for (int64_t k = 0; k < wide; k += kLanes)
          for (int64_t j = 0; j < padded; j += kGroups) {
            std::array<Lanes, kGroups> sums{};
            for (int64_t c = 0; c < of.f; ++c)
              for (int64_t q = 0; q < kGroups; ++q) sums[q] += lanes_at(row[c] + k) * weights[c * padded + j + q];
            for (int64_t q = 0; q < std::min(kGroups, g - j); ++q) {
              T* to = y + i * stride + (j + q) * of.d + k;
              k + kLanes <= of.d ? put(to, sums[q], kLanes) : put(to, sums[q], of.d - k);
            }
          }
      }
    });
  }

  // The gradient of y -> that of the vectors [N, D], if to is there, and of the weights [F, padded].
  std::vector<double> backward(const Tensor& gradient, int64_t column, float* to) const {
    const Above above(gradient, column, g, of.d);
    const int64_t parts = of.parts();
    std::vector<std::vector<Lanes>> pulls(parts);
    at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        pulls[part].resize(of.f * padded);
        to ? by_vector(part, parts, above, to, pulls[part].data()) : by_row(part, parts, above, pulls[part].data());
      }
    });
    std::vector<double> found(of.f * padded);
    for (const std::vector<Lanes>& part : pulls)
      for (int64_t i = 0; i < of.f * padded; ++i)
        for (int64_t l = 0; l < kLanes; ++l) found[i] += part[i][l];
    return found;
  }

 private:
  void by_vector(int64_t part, int64_t parts, const Above& above, float* to, Lanes* pulls) const {
    of.of_part(part, parts, [&](int64_t k, int64_t field, int64_t first, int64_t last) {
      for (int64_t at = 0; at < wide; at += kLanes) {
        const Lanes vector = lanes_at(vectors.row(k) + at);
        Lanes sum{};
        for (int64_t j = 0; j < padded; j += kGroups) {
          const int64_t there = std::min(kGroups, g - j);
          std::array<Lanes, kGroups> together{};
          for (int64_t i = first; i < last; ++i) {
            const LanesAnywhere* from = above.at(of.row_of_turn(i), j) + at / kLanes;
            if (there == kGroups)
              for (int64_t q = 0; q < kGroups; ++q) together[q] += from[q * above.registers];
            else
              for (int64_t q = 0; q < there; ++q) together[q] += from[q * above.registers];
          }
          for (int64_t q = 0; q < kGroups; ++q) {
            sum += together[q] * weights[field * padded + j + q];
            pulls[field * padded + j + q] += together[q] * vector;
          }
        }
        std::copy_n(reinterpret_cast<const float*>(&sum), std::min(kLanes, of.d - at), to + k * of.d + at);
      }
    });
  }

  void by_row(int64_t part, int64_t parts, const Above& above, Lanes* pulls) const {
    std::vector<const float*> row(of.f);
    for (int64_t i = of.b * part / parts; i < of.b * (part + 1) / parts; ++i) {
      of.of_row(i, vectors, row.data());
      for (int64_t at = 0; at < wide; at += kLanes)
        for (int64_t c = 0; c < of.f; ++c) {
          const Lanes vector = lanes_at(row[c] + at);
          const LanesAnywhere* from = above.at(i, 0) + at / kLanes;
          for (int64_t j = 0; j < g; ++j) pulls[c * padded + j] += vector * from[j * above.registers];
        }
    }
  }
};

// Powers of weighted sums, a register for kLanes groups of one dimension.
template <int64_t kOrder>
struct SumPowers {
  static constexpr int64_t kDims = 8, kBelow = kOrder ? kOrder - 1 : 0;

  const LookedUp& of;
  int64_t order, g, blocks, wide;  // groups in registers, dimensions in whole blocks
  float lambda;
  Columns vectors;
  std::vector<Lanes> inside, own, own_powers;  // [F, blocks]
  std::vector<float> own_sums;                 // [N], the powers of a vector's values added up

  SumPowers(const LookedUp& of_, const Tensor& inside_, const Tensor& own_, int64_t order_, double lambda_)
      : of(of_), order(order_), g(inside_.size(1)), blocks((g + kLanes - 1) / kLanes), wide(whole(of.d, kDims)),
        lambda(static_cast<float>(lambda_)), vectors(of.vectors, of.n, of.d, wide), inside(by_field(inside_, blocks)),
        own(by_field(own_, blocks)), own_powers(own.size()), own_sums(lambda != 0.0f ? of.n : 0) {
    for (size_t i = 0; i < own.size(); ++i) own_powers[i] = power<kOrder>(own[i], order);
    at::parallel_for(0, static_cast<int64_t>(own_sums.size()), grain(wide), [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        std::array<float, kDims> sums{};
        for (int64_t j = 0; j < wide; j += kDims)
          for (int64_t q = 0; q < kDims; ++q) sums[q] += power<kOrder>(vectors.row(k)[j + q], order);
        own_sums[k] = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
      }
    });
  }

  // -> y [B, G] of rows that begin `stride` apart
  template <typename T>
  void forward(T* y, int64_t stride) const {
    at::parallel_for(0, of.b, grain(of.f * of.d), [&](int64_t begin, int64_t end) {
      std::vector<const float*> row(of.f);
      for (int64_t i = begin; i < end; ++i) {
        of.of_row(i, vectors, row.data());
        for (int64_t j = 0; j < blocks; ++j) {
          Lanes found{};
          for (int64_t k = 0; k < wide; k += kDims)
            for (Lanes sum : sums(row.data(), j, k)) found += power<kOrder>(sum, order);
          if (lambda != 0.0f) {
            Lanes away{}, also{};  // sums that need not wait for each other
            for (int64_t c = 0; c + 1 < of.f; c += 2) {
              away += own_powers[c * blocks + j] * own_sums[of.place(i, c)];
              also += own_powers[(c + 1) * blocks + j] * own_sums[of.place(i, c + 1)];
            }
            if (of.f % 2) away += own_powers[(of.f - 1) * blocks + j] * own_sums[of.place(i, of.f - 1)];
            found -= lambda * (away + also);
          }
          T* to = y + i * stride + j * kLanes;
          (j + 1) * kLanes <= g ? put(to, found, kLanes) : put(to, found, g - j * kLanes);
        }
      }
    });
  }

  // What the weights get, [F, blocks] each.
  struct Pulls {
    std::vector<Lanes> inside, own;
  };

  // The gradient of y -> that of the vectors [N, D], if to is there, and of the weights. What is kept of every row on the
  // way is short where the gradient is: every look-up reads it, and less of it lies in a nearer cache.
  template <bool kShort>
  Pulls backward(const Tensor& gradient, int64_t column, float* to) const {
    const Above above(gradient, column, 1, g);
    const int64_t parts = of.parts(), kept = (wide / 2 + 1) * Pair<kShort>::kRegisters;
    std::vector<Pulls> pulls(parts, {std::vector<Lanes>(inside.size()), std::vector<Lanes>(own.size())});
    const Tensor room = at::empty({to ? of.b * kept * kLanes : 0}, above.room.options());  // not filled, unlike a vector
    Lanes* slopes = reinterpret_cast<Lanes*>(room.mutable_data_ptr<float>());
    for (int64_t j = 0; j < blocks; ++j) {
      if (to)
        at::parallel_for(0, of.b, grain(of.f * of.d), [&](int64_t begin, int64_t end) {
          std::vector<const float*> row(of.f);
          std::vector<Lanes> found(wide + 2);
          for (int64_t i = begin; i < end; ++i) {
            of.of_row(i, vectors, row.data());
            slope(row.data(), above.at(i, 0)[j], j, found.data());
            for (int64_t k = 0; k <= wide; k += 2)
              Pair<kShort>::write(slopes + i * kept + k / 2 * Pair<kShort>::kRegisters, found[k], found[k + 1]);
          }
        });
      at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part)
          to ? by_vector<kShort>(part, parts, j, slopes, to, pulls[part]) : by_row(part, parts, j, above, pulls[part]);
      });
    }
    Pulls found{std::vector<Lanes>(inside.size()), std::vector<Lanes>(own.size())};
    for (size_t i = 0; i < inside.size(); ++i) {
      for (const Pulls& part : pulls) {
        found.inside[i] += part.inside[i];
        found.own[i] += part.own[i];
      }
      found.own[i] *= -lambda * static_cast<float>(order) * power<kBelow>(own[i], order - 1);
    }
    return found;
  }

 private:
  // g of block j, in kDims dimensions from k on.
  std::array<Lanes, kDims> sums(const float* const* row, int64_t j, int64_t k) const {
    std::array<Lanes, kDims> found{};
    for (int64_t c = 0; c < of.f; ++c) {
      const Lanes weight = inside[c * blocks + j];
      for (int64_t q = 0; q < kDims; ++q) found[q] += weight * row[c][k + q];
    }
    return found;
  }

  // The gradients of g by dimension, and behind them that of y.
  void slope(const float* const* row, Lanes gradient, int64_t j, Lanes* found) const {
    const Lanes scale = static_cast<float>(order) * gradient;
    for (int64_t k = 0; k < wide; k += kDims) {
      const std::array<Lanes, kDims> g = sums(row, j, k);
      for (int64_t q = 0; q < kDims; ++q) found[k + q] = scale * power<kBelow>(g[q], order - 1);
    }
    found[wide] = gradient;
  }

  template <bool kShort>
  void by_vector(int64_t part, int64_t parts, int64_t j, const Lanes* slopes, float* to, Pulls& pulls) const {
    constexpr int64_t kRegisters = Pair<kShort>::kRegisters;
    const int64_t kept = (wide / 2 + 1) * kRegisters;
    of.of_part(part, parts, [&](int64_t k, int64_t field, int64_t first, int64_t last) {
      const int64_t cell = field * blocks + j;
      const float* vector = vectors.row(k);
      Lanes above{}, away{}, pull{};
      for (int64_t at = 0; at < wide; at += kDims) {
        std::array<Lanes, kDims> together{};
        for (int64_t i = first; i < last; ++i) {
          const Lanes* row = slopes + of.row_of_turn(i) * kept;
          for (int64_t q = 0; q < kDims; q += 2) {
            const auto [high, low] = Pair<kShort>::read(row + (at + q) / 2 * kRegisters);
            together[q] += high;
            together[q + 1] += low;
          }
          if (at == 0) above += Pair<kShort>::read(row + wide / 2 * kRegisters)[0];
        }
        if (at == 0 && lambda != 0.0f) {
          pulls.own[cell] += above * own_sums[k];
          away = above * lambda * static_cast<float>(order) * own_powers[cell];
        }
        std::array<Lanes, kLanes> pushed{};
        for (int64_t q = 0; q < kDims; ++q) {
          pull += together[q] * vector[at + q];
          pushed[q] = together[q] * inside[cell];
        }
        pushed[kDims] = away;
        const Lanes sums = sums_of_lanes(pushed);
        for (int64_t q = 0; q < std::min(kDims, of.d - at); ++q) {
          const float found = sums[q] - sums[kDims] * power<kBelow>(vector[at + q], order - 1);
          float& there = to[k * of.d + at + q];
          there = j ? there + found : found;
        }
      }
      pulls.inside[cell] += pull;
    });
  }

  void by_row(int64_t part, int64_t parts, int64_t j, const Above& above, Pulls& pulls) const {
    std::vector<const float*> row(of.f);
    std::vector<Lanes> slopes(wide + 1);
    for (int64_t i = of.b * part / parts; i < of.b * (part + 1) / parts; ++i) {
      of.of_row(i, vectors, row.data());
      slope(row.data(), above.at(i, 0)[j], j, slopes.data());
      for (int64_t c = 0; c < of.f; ++c) {
        Lanes pull = pulls.inside[c * blocks + j];
        for (int64_t k = 0; k < wide; ++k) pull += slopes[k] * row[c][k];
        pulls.inside[c * blocks + j] = pull;
        if (lambda != 0.0f) pulls.own[c * blocks + j] += slopes[wide] * own_sums[of.place(i, c)];
      }
    }
  }
};

// work(SumPowers) of the order, with the usual ones as constants.
template <typename Work>
void by_order(const LookedUp& of, const Tensor& inside, const Tensor& own, int64_t order, double lambda, const Work& work) {
  if (order == 2)
    work(SumPowers<2>(of, inside, own, order, lambda));
  else if (order == 3)
    work(SumPowers<3>(of, inside, own, order, lambda));
  else
    work(SumPowers<0>(of, inside, own, order, lambda));
}

void check_groups(const Tensor& inside, const std::optional<Tensor>& own, int64_t order) {
  TORCH_CHECK(order >= 1, "an order of ", order);
  check(inside, at::kFloat, 2, "inside");
  if (!own) return;
  check(*own, at::kFloat, 2, "own");
  TORCH_CHECK(own->sizes() == inside.sizes(), "shapes do not fit");
}

// vectors [N, D], places int32 [B * F] or none if N = B * F, and weights [F, G] -> y: [B, G], or [B, G * D] at order 1,
// which has no compensation, into the columns of result [B, W] from `column` on, in float32 or bfloat16. own: what is
// compensated, inside if nothing is given.
void power_sums(const Tensor& result, int64_t column, const Tensor& vectors, const std::optional<Tensor>& places,
                const Tensor& inside, const std::optional<Tensor>& own, int64_t order, double lambda) {
  check_groups(inside, own, order);
  const LookedUp of(vectors, places, inside.size(0));
  of.check_columns(result, column, inside.size(1) * (order == 1 ? of.d : 1));
  const auto write = [&](auto* y) {
    const auto forward = [&](const auto& sums) { sums.forward(y + column, result.size(1)); };
    if (order == 1)
      forward(GroupSums(of, inside));
    else
      by_order(of, inside, own.value_or(inside), order, lambda, forward);
  };
  if (result.scalar_type() == at::kBFloat16)
    write(result.mutable_data_ptr<BFloat16>());
  else
    write(result.mutable_data_ptr<float>());
}

// The gradients of power_sums() from that of result: of the vectors [N, D], for which order and begins of group() say where
// each is looked up, of inside, and of own if it was given. That of the vectors is empty if nobody wants it.
std::tuple<Tensor, Tensor, Tensor> power_sums_backward(
    const Tensor& gradient, int64_t column, const Tensor& vectors, const std::optional<Tensor>& places,
    const std::optional<Tensor>& look_ups, const std::optional<Tensor>& begins, const Tensor& inside,
    const std::optional<Tensor>& own, int64_t order, double lambda, bool wants_vectors) {
  check_groups(inside, own, order);
  LookedUp of(vectors, places, inside.size(0));
  const int64_t g = inside.size(1);
  of.check_columns(gradient, column, g * (order == 1 ? of.d : 1));
  if (wants_vectors) of.by_vector(look_ups, begins);
  Tensor of_vectors = at::empty({wants_vectors ? of.n : 0, of.d}, vectors.options());
  float* to = wants_vectors ? of_vectors.mutable_data_ptr<float>() : nullptr;
  // Of [F, padded].
  const auto filled = [&](const auto* found, int64_t padded) {
    Tensor result = at::empty({of.f, g}, inside.options());
    for (int64_t c = 0; c < of.f; ++c)
      std::copy_n(found + c * padded, g, result.mutable_data_ptr<float>() + c * g);
    return result;
  };
  Tensor of_inside, of_own = at::empty({0, g}, inside.options());
  if (order == 1) {
    const GroupSums sums(of, inside);
    of_inside = filled(sums.backward(gradient, column, to).data(), sums.padded);
    if (own) of_own = at::zeros(inside.sizes(), inside.options());
  } else {
    by_order(of, inside, own.value_or(inside), order, lambda, [&](const auto& powers) {
      auto pulls = gradient.scalar_type() == at::kBFloat16 ? powers.template backward<true>(gradient, column, to)
                                                           : powers.template backward<false>(gradient, column, to);
      const auto numbers = [](const std::vector<Lanes>& lanes) { return reinterpret_cast<const float*>(lanes.data()); };
      if (own)
        of_own = filled(numbers(pulls.own), powers.blocks * kLanes);
      else
        for (size_t i = 0; i < pulls.own.size(); ++i) pulls.inside[i] += pulls.own[i];
      of_inside = filled(numbers(pulls.inside), powers.blocks * kLanes);
    });
  }
  return {of_vectors, of_inside, of_own};
}

}  // namespace
