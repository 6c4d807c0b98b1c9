// Groups of vectors: weighted sums and their powers, of which nothing but the result is written down.
//
// Of a row's F vectors n_f [D], G groups of one order p, and weights inside and own [F, G]:
//   g_j = sum_f inside_fj n_f,  and for p = 1: y_j = g_j,  for p > 1: y_j = sum_d g_jd^p - lambda sum_f (own_fj n_fd)^p.
// The backward pass computes g again, which is quicker than to read it: nothing is written down but what is wanted.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <optional>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "common.h"
#include "tiles.h"

namespace {

// values^order, of several at once, so that the order is asked for once.
template <size_t n>
[[gnu::always_inline]] inline void raise(std::array<Lanes, n>& values, int64_t order) {
  const std::array<Lanes, n> x = values;
  if (order == 0)
    for (Lanes& value : values) value = all(1.0f);
  for (int64_t k = 1; k < order; ++k)
    for (size_t i = 0; i < n; ++i) values[i] *= x[i];
}

Lanes power(Lanes x, int64_t order) {
  std::array<Lanes, 1> found{x};
  raise(found, order);
  return found[0];
}

// Lane l: the sum of all lanes of vector l; or, of the first 2 * kStep vectors, where lanes l and l + 2 * kStep are summed
// up apart.
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

// Part of a register, wherever it lies in memory; a width that depends on a template would be ignored.
template <int64_t kPiece>
struct Piece {
  using Anywhere = LanesAnywhere;
};
template <>
struct Piece<8> {
  using Anywhere = float __attribute__((vector_size(8 * sizeof(float)), aligned(sizeof(float)), may_alias));
};
template <>
struct Piece<4> {
  using Anywhere = float __attribute__((vector_size(4 * sizeof(float)), aligned(sizeof(float)), may_alias));
};

using Bits = uint32_t __attribute__((vector_size(kLanes * sizeof(uint32_t))));
using Shorts = uint16_t __attribute__((vector_size(kLanes * sizeof(uint16_t))));
using ShortsAnywhere = uint16_t __attribute__((vector_size(kLanes * sizeof(uint16_t)), aligned(sizeof(uint16_t)), may_alias));

Lanes lanes_of(const float* from) { return *reinterpret_cast<const LanesAnywhere*>(from); }
Lanes lanes_of(const BFloat16* from) {
  return reinterpret_cast<Lanes>(__builtin_convertvector(*reinterpret_cast<const ShortsAnywhere*>(from), Bits) << 16);
}

// The first `count` lanes, and zeros.
template <typename T>
Lanes lanes_of(const T* from, int64_t count) {
  if (count >= kLanes) return lanes_of(from);
  Lanes found{};
  for (int64_t l = 0; l < count; ++l) found[l] = static_cast<float>(from[l]);
  return found;
}

void put(float* to, const Lanes& values) { *reinterpret_cast<LanesAnywhere*>(to) = values; }
void put(BFloat16* to, const Lanes& values) {
  const Bits bits = reinterpret_cast<Bits>(values);
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  *reinterpret_cast<ShortsAnywhere*>(to) = __builtin_convertvector(values == values ? rounded : rounded | 0x40, Shorts);
}

// Up to `count` lanes.
template <typename T>
void put(T* to, const Lanes& values, int64_t count) {
  if (count >= kLanes) return put(to, values);
  for (int64_t l = 0; l < count; ++l) to[l] = static_cast<T>(values[l]);
}

// F vectors for each of B rows: places int32 [B * F] among vectors [N, D], where no two fields share one; or row after row
// without. Here they are `wide` values apart, filled up with zeros: 4, 8, or whole registers.
struct LookedUp {
  int64_t n, d, f, b, wide;
  Tensor filled, turns;
  const float* vectors;
  const int32_t* places;

  LookedUp(const Tensor& vectors_, const std::optional<Tensor>& places_, int64_t f_)
      : n(vectors_.size(0)), d(vectors_.size(1)), f(f_), wide(d <= 4 ? 4 : d <= 8 ? 8 : whole(d, kLanes)) {
    check(vectors_, at::kFloat, 2, "vectors");
    filled = wide == d ? vectors_ : at::constant_pad_nd(vectors_, {0, wide - d});
    vectors = filled.const_data_ptr<float>();
    turns = places_ ? *places_ : at::arange(n, vectors_.options().dtype(at::kInt));
    check(turns, at::kInt, 1, "places");
    places = turns.const_data_ptr<int32_t>();
    const int64_t look_ups = turns.numel();
    TORCH_CHECK(f > 0 && look_ups % f == 0, look_ups, " vectors are not rows of ", f);
    b = look_ups / f;
  }

  // The backward pass need not do it again.
  void check_places() const {
    at::parallel_for(0, b * f, kGrain, [&](int64_t begin, int64_t end) {
      uint32_t most = 0;  // negative ones are the largest
      for (int64_t i = begin; i < end; ++i) most = std::max(most, static_cast<uint32_t>(places[i]));
      TORCH_CHECK_INDEX(most < n, "a place behind the last of ", n, " vectors");
    });
  }

  void check_columns(const Tensor& t, int64_t column, int64_t width) const {
    check(t, t.scalar_type() == at::kBFloat16 ? at::kBFloat16 : at::kFloat, 2, "what groups give");
    TORCH_CHECK(t.size(0) == b && column >= 0 && column + width <= t.size(1), "shapes do not fit");
  }

  // Which vector is that of field c in row i.
  int64_t place(int64_t i, int64_t c) const { return places[i * f + c]; }

  // Fetches what the vectors of some rows, as far as these are there, and fields have at `values`, `wide` numbers each.
  template <bool kWrites>  // inlined, or compilers leave out a call that changes nothing
  [[gnu::always_inline]] void fetch(const float* values, int64_t first, int64_t rows, std::pair<int64_t, int64_t> fields) const {
    const int64_t width = wide;  // in a register
    for (int64_t i = first; i < std::min(first + rows, b); ++i) {
      const int32_t *from = places + i * f + fields.first, *end = places + i * f + fields.second;
      for (; from < end; ++from) __builtin_prefetch(values + *from * width, kWrites);
    }
  }
};

// Which entries of a matrix [F, G] count, by row or by column.
class Listed {
 public:
  struct Entry {
    int64_t other;  // column, or row
    float value;
  };

  // counts(row * columns + column)
  template <typename Counts>
  Listed(const float* matrix, int64_t rows, int64_t columns, bool by_row, const Counts& counts) {
    for (int64_t i = 0; i < (by_row ? rows : columns); ++i) {
      for (int64_t j = 0; j < (by_row ? columns : rows); ++j) {
        const int64_t at = by_row ? i * columns + j : j * columns + i;
        if (counts(at)) entries_.push_back({j, matrix[at]});
      }
      ends_.push_back(entries_.size());
    }
  }

  std::span<const Entry> operator[](int64_t i) const {
    const int64_t begin = i ? ends_[i - 1] : 0;
    return {entries_.data() + begin, static_cast<size_t>(ends_[i] - begin)};
  }

 private:
  std::vector<Entry> entries_;
  std::vector<int64_t> ends_;
};

// The groups of one order. A register holds kPiece numbers of a vector, in as many rows as there is room for; a wider vector
// takes several `parts`. kTogether registers of rows are a tile, of which groups are computed of their members one by one.
template <int64_t kPiece>
class GroupPowers {
 public:
  // members [F, G]: a zero says that nobody wants the gradient of this entry of `inside`.
  GroupPowers(const LookedUp& of, const Tensor& inside, const std::optional<Tensor>& own, const std::optional<Tensor>& members,
              int64_t order, double lambda)
      : of_(of), order_(order), g_(inside.size(1)), parts_(of.wide / kPiece), blocks_(whole(g_, kLanes) / kLanes),
        field_blocks_(whole(of.f, kLanes) / kLanes), lambda_(order > 1 ? static_cast<float>(lambda) : 0.0f),
        apart_(own.has_value()), inside_(inside.const_data_ptr<float>()),
        members_(members ? members->const_data_ptr<float>() : nullptr), own_((own ? *own : inside).const_data_ptr<float>()),
        of_groups_(inside_, of.f, g_, false, [this](int64_t at) { return inside_[at] != 0.0f; }) {}

  // The powers of a vector's values added up, [N]; nothing if they are not needed.
  Tensor own_sums() const {
    Tensor result = at::empty({lambda_ != 0.0f ? of_.n : 0}, of_.filled.options());
    float* sums = result.mutable_data_ptr<float>();
    at::parallel_for(0, result.numel(), grain(of_.wide), [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; k += kLanes) {
        const int64_t there = std::min(kLanes, end - k);
        std::array<Lanes, kLanes> found{};
        for (int64_t i = 0; i < there; ++i)
          for (int64_t part = 0; part < parts_; ++part) {
            Lanes x{};
            copy(of_.vectors + (k + i) * of_.wide + part * kPiece, reinterpret_cast<float*>(&x), kPiece);
            found[i] += power(x, order_);
          }
        put(sums + k, sums_of_lanes(found), there);
      }
    });
    return result;
  }

  // -> y [B, G], or [B, G * D] at order 1, of rows that begin `stride` apart
  template <typename T>
  void forward(T* y, int64_t stride, const float* own_sums) const {
    const std::vector<Lanes> own = powers_of_own(lambda_, order_);
    const int64_t tiles = (of_.b + kRows - 1) / kRows;
    at::parallel_for(0, tiles, std::max<int64_t>(1, grain(of_.f * of_.d) / kRows), [&](int64_t begin, int64_t end) {
      std::vector<Lanes> x(of_.f * kTogether), found(whole(g_, kPiece) * kTogether), totals(kRows * blocks_);
      std::vector<float> alone(of_.f * kRows);
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t first = tile * kRows, rows = std::min(kRows, of_.b - first);
        of_.fetch<false>(of_.vectors, first + kRows, kRows, {0, of_.f});
        for (int64_t part = 0; part < parts_; ++part) {
          gather(first, part, {0, of_.f}, x.data());
          for (int64_t j = 0; j < g_; ++j) {
            Registers sums = sum(j, x.data());
            if (order_ == 1)
              each_piece(j, part, rows, sums.data(), [&](int64_t row, int64_t column, float* piece, int64_t count) {
                copy(piece, y + (first + row) * stride + column, count);
              });
            if (order_ == 1) continue;
            raise(sums, order_);
            Lanes* to = &found[j * kTogether];
            for (int64_t k = 0; k < kTogether; ++k) to[k] = part ? to[k] + sums[k] : sums[k];
          }
        }
        if (order_ == 1) continue;
        add_up(found.data(), totals.data());
        if (lambda_ != 0.0f) {
          gather(first, own_sums, {0, of_.f}, alone.data());
          take_away(own.data(), alone.data(), totals.data());
        }
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < blocks_; ++j)
            put(y + (first + i) * stride + j * kLanes, totals[i * blocks_ + j], g_ - j * kLanes);
      }
    });
  }

  // The gradients of inside [F, G] and of own [F, G]. Without weights of their own for the compensation, what these would get
  // is part of the first, and the second is [0, G].
  using Weights = std::pair<Tensor, Tensor>;

  // The gradient of y, of rows that begin `stride` apart -> that of the vectors [N, wide], if to is there, and of the weights.
  template <typename T>
  Weights backward(const T* gradient, int64_t stride, const float* own_sums, float* to) const {
    const int64_t tiles = (of_.b + kRows - 1) / kRows;
    // As many parts on any machine. What vectors get is as large as they are, so that there are few parts then; more threads
    // than that share out the fields, whose vectors are apart, and compute g more than once, which is nothing at order 1.
    const int64_t parts = std::clamp<int64_t>(tiles, 1, !to ? 16 : order_ > 1 ? 2 : 1);
    const int64_t shares = to ? std::clamp<int64_t>(at::get_num_threads() / parts, 1, of_.f) : 1;
    std::vector<Pulled> pulls(parts, {std::vector<Lanes>(of_.f * g_), std::vector<Lanes>(of_.f * blocks_)});
    const Tensor other = at::empty({to && parts > 1 ? of_.n : 0, of_.wide}, of_.filled.options());
    const auto of_part = [&](int64_t part) { return to && part ? other.mutable_data_ptr<float>() : to; };
    at::parallel_for(0, to ? parts : 0, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) std::fill_n(of_part(part), of_.n * of_.wide, 0.0f);
    });
    const Listed of_fields(inside_, of_.f, g_, true, [&](int64_t at) {
      return !members_ || members_[at] != 0.0f || (to && inside_[at] != 0.0f);
    });
    const bool pushes = to && lambda_ != 0.0f;
    const std::vector<Lanes> away = pushes ? powers_by_group(-lambda_) : std::vector<Lanes>();
    at::parallel_for(0, parts * shares, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t part = task / shares, share = task % shares;
        pull(gradient, stride, {tiles * part / parts, tiles * (part + 1) / parts},
             {of_.f * share / shares, of_.f * (share + 1) / shares}, of_fields, away, own_sums, pulls[part], of_part(part));
      }
    });
    const float* more = other.const_data_ptr<float>();
    at::parallel_for(0, other.numel(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[i] += more[i];
    });
    return summed(pulls);
  }

 private:
  static constexpr int64_t kBeside = kLanes / kPiece, kTogether = 8, kRows = kTogether * kBeside;
  using Registers = std::array<Lanes, kTogether>;

  // Per part of the rows: of every entry of inside, of whose lanes the sum counts, and of own, a lane per group.
  struct Pulled {
    std::vector<Lanes> inside, own;
  };

  template <typename From, typename To>
  static void copy(const From* from, To* to, int64_t count) {
    if (count == kPiece)
      for (int64_t l = 0; l < kPiece; ++l) to[l] = static_cast<To>(from[l]);
    else
      for (int64_t l = 0; l < count; ++l) to[l] = static_cast<To>(from[l]);
  }

  // One number per row, `stride` apart, in all its lanes.
  template <int64_t kRow = 0>
  static Lanes by_row(const float* values, int64_t stride) {
    const auto with = [&]<size_t... l>(Lanes others, std::index_sequence<l...>) {
      return __builtin_shufflevector(all(*values), others, (l < (kRow + 1) * kPiece ? l : kLanes + l)...);
    };
    if constexpr (kRow + 1 < kBeside)
      return with(by_row<kRow + 1>(values + stride, stride), std::make_index_sequence<kLanes>());
    else
      return all(*values);
  }

  // x [F, kTogether]: the vectors of some fields in kRows rows, of which the last one stands for those that are not there.
  void gather(int64_t first, int64_t part, std::pair<int64_t, int64_t> fields, Lanes* x) const {
    using Anywhere = typename Piece<kPiece>::Anywhere;
    const float* vectors = of_.vectors + part * kPiece;
    const int64_t wide = of_.wide;  // in a register, whatever is written
    for (int64_t i = 0; i < kRows; ++i) {
      const int32_t* places = of_.places + std::min(first + i, of_.b - 1) * of_.f;
      Anywhere* to = reinterpret_cast<Anywhere*>(x) + i;
      for (int64_t c = fields.first; c < fields.second; ++c)
        to[c * kRows] = *reinterpret_cast<const Anywhere*>(vectors + places[c] * wide);
    }
  }

  // alone [F, kRows]: of the same, the sums of their own powers.
  void gather(int64_t first, const float* own_sums, std::pair<int64_t, int64_t> fields, float* alone) const {
    for (int64_t i = 0; i < kRows; ++i)
      for (int64_t c = fields.first; c < fields.second; ++c)
        alone[c * kRows + i] = own_sums[of_.place(std::min(first + i, of_.b - 1), c)];
  }

  // g of group j.
  Registers sum(int64_t j, const Lanes* x) const {
    Registers sums;
    for (Lanes& sum : sums) sum = Lanes{};  // compilers would call what clears memory
    for (const auto [c, weight] : of_groups_[j])
      for (int64_t k = 0; k < kTogether; ++k) sums[k] += weight * x[c * kTogether + k];
    return sums;
  }

  // At order 1, work(row, first column of y, where its numbers are among `values`, how many) of group j.
  template <typename Work>
  void each_piece(int64_t j, int64_t part, int64_t rows, Lanes* values, const Work& work) const {
    float* pieces = reinterpret_cast<float*>(values);
    const int64_t count = std::min(kPiece, of_.d - part * kPiece);
    for (int64_t i = 0; i < rows; ++i) work(i, j * of_.d + part * kPiece, pieces + i * kPiece, count);
  }

  // own [F, blocks], a lane per group, to the power of `order`.
  std::vector<Lanes> powers_of_own(float factor, int64_t order) const {
    std::vector<Lanes> found(of_.f * blocks_);
    for (int64_t c = 0; c < of_.f; ++c)
      for (int64_t j = 0; j < g_; ++j) found[c * blocks_ + j / kLanes][j % kLanes] = own_[c * g_ + j];
    for (Lanes& w : found) w = factor * power(w, order);
    return found;
  }

  // The same, [G, field blocks], a lane per field.
  std::vector<Lanes> powers_by_group(float factor) const {
    std::vector<Lanes> found(g_ * field_blocks_);
    for (int64_t j = 0; j < g_; ++j)
      for (int64_t c = 0; c < of_.f; ++c) found[j * field_blocks_ + c / kLanes][c % kLanes] = own_[c * g_ + j];
    for (Lanes& w : found) w = factor * power(w, order_);
    return found;
  }

  // The pieces of a row added up, a lane per group: totals [kRows, blocks].
  void add_up(const Lanes* found, Lanes* totals) const {
    for (int64_t k = 0; k < kTogether; ++k)
      for (int64_t j = 0; j < g_; j += kPiece) {
        std::array<Lanes, kLanes> pieces;
        for (int64_t i = 0; i < kPiece; ++i) pieces[i] = found[(j + i) * kTogether + k];
        const Lanes sums = sums_of_lanes<kPiece / 2>(pieces);
        for (int64_t s = 0; s < kBeside; ++s)
          copy(reinterpret_cast<const float*>(&sums) + s * kPiece,
               reinterpret_cast<float*>(totals + (k * kBeside + s) * blocks_) + j, kPiece);
      }
  }

  // totals [kRows, blocks] -= what single fields make: own [F, blocks] by alone [F, kRows].
  void take_away(const Lanes* own, const float* alone, Lanes* totals) const {
    constexpr int64_t kAtOnce = 8;
    for (int64_t i = 0; i < kRows; i += kAtOnce, alone += kAtOnce, totals += kAtOnce * blocks_)
      for (int64_t j = 0; j < blocks_; ++j) {
        std::array<Lanes, kAtOnce> left;
        for (int64_t r = 0; r < kAtOnce; ++r) left[r] = totals[r * blocks_ + j];
        for (int64_t c = 0; c < of_.f; ++c)
          for (int64_t r = 0; r < kAtOnce; ++r) left[r] -= own[c * blocks_ + j] * alone[c * kRows + r];
        for (int64_t r = 0; r < kAtOnce; ++r) totals[r * blocks_ + j] = left[r];
      }
  }

  // The gradient of y at orders above 1, times the order: [kRows, blocks], zeros for rows that are not there.
  template <typename T>
  void load(const T* gradient, int64_t stride, int64_t rows, Lanes* above) const {
    std::fill_n(above, kRows * blocks_, Lanes{});
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < blocks_; ++j) {
        __builtin_prefetch(gradient + (i + kRows) * stride + j * kLanes);
        above[i * blocks_ + j] =
            static_cast<float>(order_) * lanes_of(gradient + i * stride + j * kLanes, g_ - j * kLanes);
      }
  }

  // slopes [G, kTogether]: the gradient of g.
  template <typename T>
  void slope(const T* gradient, int64_t stride, int64_t rows, int64_t part, const Lanes* x, const float* above,
             Lanes* slopes) const {
    if (order_ == 1) std::fill_n(slopes, g_ * kTogether, Lanes{});
    for (int64_t j = 0; j < g_; ++j, slopes += kTogether) {
      if (order_ == 1) {
        each_piece(j, part, rows, slopes, [&](int64_t row, int64_t column, float* piece, int64_t count) {
          copy(gradient + row * stride + column, piece, count);
        });
        continue;
      }
      Registers sums = sum(j, x);
      raise(sums, order_ - 1);
      const int64_t wide = blocks_ * kLanes;
      for (int64_t k = 0; k < kTogether; ++k) slopes[k] = by_row(above + k * kBeside * wide + j, wide) * sums[k];
    }
  }

  // Of some tiles and fields: what weights get, and the fields' vectors if to is there.
  template <typename T>
  void pull(const T* gradient, int64_t stride, std::pair<int64_t, int64_t> tiles, std::pair<int64_t, int64_t> fields,
            const Listed& of_fields, const std::vector<Lanes>& away, const float* own_sums, Pulled& pulls, float* to) const {
    std::vector<Lanes> x(of_.f * kTogether), slopes(g_ * kTogether), above(kRows * blocks_), pushed(kRows * field_blocks_);
    std::vector<float> alone(of_.f * kRows);
    const float* aboves = reinterpret_cast<const float*>(above.data());
    for (int64_t first = tiles.first * kRows; first < std::min(tiles.second * kRows, of_.b); first += kRows) {
      const int64_t rows = std::min(kRows, of_.b - first);
      if (to) of_.fetch<true>(to, first, kRows, fields);
      of_.fetch<false>(of_.vectors, first + kRows, kRows, fields);
      if (order_ > 1) load(gradient + first * stride, stride, rows, above.data());
      if (lambda_ != 0.0f) {
        gather(first, own_sums, fields, alone.data());
        pull_own(fields, above.data(), alone.data(), pulls.own.data());
      }
      if (!away.empty()) push_away(aboves, away, pushed.data());
      for (int64_t part = 0; part < parts_; ++part) {
        gather(first, part, order_ > 1 ? std::pair<int64_t, int64_t>{0, of_.f} : fields, x.data());
        slope(gradient + first * stride, stride, rows, part, x.data(), aboves, slopes.data());
        for (int64_t c = fields.first; c < fields.second; ++c) {
          Lanes* pull = &pulls.inside[c * g_];
          if (!to) {
            of_field(of_fields[c], &x[c * kTogether], slopes.data(), pull);
            continue;
          }
          const float* others = away.empty() ? nullptr : reinterpret_cast<const float*>(pushed.data()) + c;
          of_vectors(of_fields[c], first, rows, c, &x[c * kTogether], slopes.data(), others, pull, to + part * kPiece);
        }
      }
    }
  }

  // What the weights of the compensation get of some fields, [F, blocks].
  void pull_own(std::pair<int64_t, int64_t> fields, const Lanes* above, const float* alone, Lanes* pulls) const {
    for (int64_t c = fields.first; c < fields.second; ++c)
      for (int64_t j = 0; j < blocks_; ++j) {
        std::array<Lanes, 2> pull{pulls[c * blocks_ + j]};  // sums that need not wait for each other
        for (int64_t i = 0; i < kRows; ++i) pull[i % 2] += above[i * blocks_ + j] * alone[c * kRows + i];
        pulls[c * blocks_ + j] = pull[0] + pull[1];
      }
  }

  // What, by compensation, the gradients of vectors have of the powers of these: pushed [kRows, field blocks].
  void push_away(const float* above, const std::vector<Lanes>& away, Lanes* pushed) const {
    constexpr int64_t kAtOnce = 4;
    for (int64_t i = 0; i < kRows; i += kAtOnce)
      for (int64_t c = 0; c < field_blocks_; ++c) {
        std::array<Lanes, kAtOnce> sums{};
        for (int64_t j = 0; j < g_; ++j)
          for (int64_t r = 0; r < kAtOnce; ++r) sums[r] += above[(i + r) * blocks_ * kLanes + j] * away[j * field_blocks_ + c];
        for (int64_t r = 0; r < kAtOnce; ++r) pushed[(i + r) * field_blocks_ + c] = sums[r];
      }
  }

  // What the weights of one field get.
  void of_field(std::span<const Listed::Entry> entries, const Lanes* x, const Lanes* slopes, Lanes* pulls) const {
    Registers values;
    for (int64_t k = 0; k < kTogether; ++k) values[k] = x[k];
    for (const auto [j, weight] : entries) {
      std::array<Lanes, 2> pull{pulls[j]};
      for (int64_t k = 0; k < kTogether; ++k) pull[k % 2] += slopes[j * kTogether + k] * values[k];
      pulls[j] = pull[0] + pull[1];
    }
  }

  // The same, and what its vectors get; `pushed` is there if there is a compensation.
  void of_vectors(std::span<const Listed::Entry> entries, int64_t first, int64_t rows, int64_t c, const Lanes* x,
                  const Lanes* slopes, const float* pushed, Lanes* pulls, float* to) const {
    if (entries.empty() && !pushed) return;
    constexpr int64_t kAtOnce = kRegisters / 4;
    using Anywhere = typename Piece<kPiece>::Anywhere;
    const int64_t pushed_wide = field_blocks_ * kLanes, f = of_.f, wide = of_.wide;  // in registers, whatever is written
    const int32_t* places = of_.places + first * f + c;
    for (int64_t begin = 0; begin < kTogether; begin += kAtOnce) {
      std::array<Lanes, kAtOnce> values, sums;
      for (int64_t k = 0; k < kAtOnce; ++k) values[k] = sums[k] = x[begin + k];
      if (pushed) raise(sums, order_ - 1);
      for (int64_t k = 0; k < kAtOnce; ++k)
        sums[k] = pushed ? sums[k] * by_row(pushed + (begin + k) * kBeside * pushed_wide, pushed_wide) : Lanes{};
      for (const auto [j, weight] : entries) {
        std::array<Lanes, 2> pull{pulls[j]};
        for (int64_t k = 0; k < kAtOnce; ++k) {
          const Lanes slope = slopes[j * kTogether + begin + k];
          pull[k % 2] += slope * values[k];
          sums[k] += slope * weight;
        }
        pulls[j] = pull[0] + pull[1];
      }
      const auto* pieces = reinterpret_cast<const Anywhere*>(sums.data());
      for (int64_t i = begin * kBeside; i < std::min(rows, (begin + kAtOnce) * kBeside); ++i)
        *reinterpret_cast<Anywhere*>(to + places[i * f] * wide) += pieces[i - begin * kBeside];
    }
  }

  Weights summed(const std::vector<Pulled>& pulls) const {
    Tensor of_inside = at::zeros({of_.f, g_}, of_.filled.options());
    Tensor of_own = at::zeros({apart_ ? of_.f : 0, g_}, of_.filled.options());
    float* inside = of_inside.mutable_data_ptr<float>();
    float* own = apart_ ? of_own.mutable_data_ptr<float>() : inside;
    const std::vector<Lanes> slopes = powers_of_own(-lambda_, order_ - 1);
    for (int64_t at = 0; at < of_.f * g_; ++at) {
      Lanes sum{};
      for (const Pulled& part : pulls) sum += part.inside[at];
      for (int64_t l = 0; l < kLanes; ++l) inside[at] += sum[l];
    }
    for (int64_t c = 0; c < (lambda_ != 0.0f ? of_.f : 0); ++c)
      for (int64_t block = 0; block < blocks_; ++block) {
        const int64_t at = c * blocks_ + block;
        Lanes sum{};
        for (const Pulled& part : pulls) sum += part.own[at];
        sum *= slopes[at];
        for (int64_t l = 0; l < std::min(kLanes, g_ - block * kLanes); ++l) own[c * g_ + block * kLanes + l] += sum[l];
      }
    return {of_inside, of_own};
  }

  const LookedUp& of_;
  int64_t order_, g_, parts_, blocks_, field_blocks_;  // of kLanes groups, and of kLanes fields
  float lambda_;
  bool apart_;  // own is not inside
  const float *inside_, *members_, *own_;
  Listed of_groups_;
};

// work(GroupPowers) of the pieces that the vectors' width makes.
template <typename Work>
void by_piece(const LookedUp& of, const Tensor& inside, const std::optional<Tensor>& own, const std::optional<Tensor>& members,
              int64_t order, double lambda, const Work& work) {
  TORCH_CHECK(order >= 1, "an order of ", order);
  check(inside, at::kFloat, 2, "inside");
  for (const auto& other : {own, members}) {
    if (!other) continue;
    check(*other, at::kFloat, 2, "own and members");
    TORCH_CHECK(other->sizes() == inside.sizes(), "shapes do not fit");
  }
  const auto with = [&]<int64_t kPiece>() {
    work(GroupPowers<kPiece>(of, inside, own, members, order, lambda));
  };
  if (kLanes > 4 && of.wide == 4)
    with.template operator()<4>();
  else if (kLanes > 8 && of.wide == 8)
    with.template operator()<8>();
  else
    with.template operator()<kLanes>();
}

// vectors [N, D], places int32 [B * F] or none if N = B * F, and weights [F, G] -> y: [B, G], or [B, G * D] at order 1,
// which has no compensation, into the columns of result [B, W] from `column` on, in float32 or bfloat16. own: what is
// compensated, inside if nothing is given. What the gradients need of it: the powers of every vector's values added up.
Tensor power_sums(const Tensor& result, int64_t column, const Tensor& vectors, const std::optional<Tensor>& places,
                  const Tensor& inside, const std::optional<Tensor>& own, int64_t order, double lambda) {
  const LookedUp of(vectors, places, inside.size(0));
  of.check_places();
  of.check_columns(result, column, inside.size(1) * (order == 1 ? of.d : 1));
  Tensor own_sums;
  by_piece(of, inside, own, std::nullopt, order, lambda, [&](const auto& powers) {
    own_sums = powers.own_sums();
    const float* sums = own_sums.const_data_ptr<float>();
    result.scalar_type() == at::kBFloat16
        ? powers.forward(result.mutable_data_ptr<BFloat16>() + column, result.size(1), sums)
        : powers.forward(result.mutable_data_ptr<float>() + column, result.size(1), sums);
  });
  return own_sums;
}

// The gradients of power_sums() from that of result: of the vectors [N, D], of inside, and of own if it was given. That of
// the vectors is empty if nobody wants it, and that of inside may be zero where `members` [F, G] are.
std::tuple<Tensor, Tensor, Tensor> power_sums_backward(const Tensor& gradient, int64_t column, const Tensor& vectors,
                                                       const std::optional<Tensor>& places, const Tensor& inside,
                                                       const std::optional<Tensor>& own,
                                                       const std::optional<Tensor>& members, const Tensor& own_sums,
                                                       int64_t order, double lambda, bool wants_vectors) {
  const LookedUp of(vectors, places, inside.size(0));
  const int64_t g = inside.size(1);
  of.check_columns(gradient, column, g * (order == 1 ? of.d : 1));
  check(own_sums, at::kFloat, 1, "own_sums");
  TORCH_CHECK(order == 1 || lambda == 0.0 || own_sums.size(0) == of.n, "own_sums are of other vectors");
  const float* sums = own_sums.const_data_ptr<float>();
  Tensor of_vectors = at::empty({wants_vectors ? of.n : 0, of.wide}, vectors.options());
  float* to = wants_vectors ? of_vectors.mutable_data_ptr<float>() : nullptr;
  Tensor of_inside, of_own;
  by_piece(of, inside, own, members, order, lambda, [&](const auto& powers) {
    std::tie(of_inside, of_own) =
        gradient.scalar_type() == at::kBFloat16
            ? powers.backward(gradient.const_data_ptr<BFloat16>() + column, gradient.size(1), sums, to)
            : powers.backward(gradient.const_data_ptr<float>() + column, gradient.size(1), sums, to);
  });
  return {of.wide == of.d ? of_vectors : of_vectors.narrow(1, 0, of.d).contiguous(), of_inside, of_own};
}

}  // namespace
