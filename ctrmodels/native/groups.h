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

#ifdef __AVX512DQ__
#include <immintrin.h>
#endif

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "common.h"
#include "tiles.h"

namespace {

Lanes power(Lanes x, int64_t order) {
  if (order == 1) return x;
  if (order == 2) return x * x;
  Lanes found = all(1.0f);
  for (int64_t k = 0; k < order; ++k) found *= x;
  return found;
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

// kPiece numbers, side by side as often as a register holds them.
template <int64_t kPiece, size_t... l>
Lanes repeated(const float* from, std::index_sequence<l...>) {
#ifdef __AVX512DQ__  // where compilers load first and shuffle then, which competes with products
  if constexpr (kPiece == 8) return reinterpret_cast<Lanes>(_mm512_broadcast_f32x8(_mm256_loadu_ps(from)));
#endif
  const auto piece = *reinterpret_cast<const typename Piece<kPiece>::Anywhere*>(from);
  return __builtin_shufflevector(piece, piece, (l % kPiece)...);
}

// to[l] += the sum of lanes l, l + kPiece, ...
template <int64_t kPiece>
void add_pieces(float* to, const Lanes& values) {
  using Anywhere = typename Piece<kPiece>::Anywhere;
  const auto* pieces = reinterpret_cast<const Anywhere*>(&values);
  Anywhere sum = pieces[0];
  for (int64_t s = 1; s < kLanes / kPiece; ++s) sum += pieces[s];
  *reinterpret_cast<Anywhere*>(to) += sum;
}

using Ints = int32_t __attribute__((vector_size(kLanes * sizeof(int32_t))));
using Bits = uint32_t __attribute__((vector_size(kLanes * sizeof(uint32_t))));
using Shorts = uint16_t __attribute__((vector_size(kLanes * sizeof(uint16_t))));
using ShortsAnywhere = uint16_t __attribute__((vector_size(kLanes * sizeof(uint16_t)), aligned(sizeof(uint16_t)), may_alias));

// Lane l: that of `values` which places[l] names.
Lanes spread(Lanes values, Ints places) {
#ifdef __clang__  // which has no shuffle by places that are not constant
  Lanes found;
  for (int64_t l = 0; l < kLanes; ++l) found[l] = values[places[l]];
  return found;
#else
  return __builtin_shuffle(values, places);
#endif
}

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
    uint32_t most = 0;  // negative ones are the largest
    for (int64_t i = 0; i < b * f; ++i) most = std::max(most, static_cast<uint32_t>(places[i]));
    TORCH_CHECK_INDEX(most < n || b == 0, "a place behind the last of ", n, " vectors");
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

  // The same in kLanes rows, of which the last one stands for those that are not there.
  std::array<int64_t, kLanes> places_of(int64_t first, int64_t c) const {
    std::array<int64_t, kLanes> found;
    for (int64_t l = 0; l < kLanes; ++l) found[l] = place(std::min(first + l, b - 1), c);
    return found;
  }
};

// The groups of one order. kPiece lanes of a register are numbers of one group: all of them, or 4 or 8 where vectors are
// narrow. So kPiece registers hold kLanes groups, group number l in lanes l / kPiece * kPiece on of register l % kPiece.
// A wider vector takes several `parts`.
template <int64_t kPiece>
class GroupPowers {
 public:
  GroupPowers(const LookedUp& of, const Tensor& inside, const Tensor& own, int64_t order, double lambda)
      : of_(of), order_(order), g_(inside.size(1)), parts_(of.wide / kPiece), blocks_((g_ + kLanes - 1) / kLanes),
        registers_(g_ / kLanes * kPiece + std::min(kPiece, whole(g_ % kLanes, kTogether))),
        kept_(parts_ * registers_ + (order > 1 ? blocks_ : 0)), lambda_(order > 1 ? static_cast<float>(lambda) : 0.0f),
        inside_(of.f * registers_), own_(of.f * blocks_) {
    const float *weights = inside.const_data_ptr<float>(), *others = own.const_data_ptr<float>();
    for (int64_t c = 0; c < of.f; ++c)
      for (int64_t j = 0; j < g_; ++j) {
        for (int64_t l = 0; l < kPiece; ++l)
          inside_[c * registers_ + register_of(j)][j % kLanes / kPiece * kPiece + l] = weights[c * g_ + j];
        own_[c * blocks_ + j / kLanes][j % kLanes] = others[c * g_ + j];
      }
  }

  // The powers of a vector's values added up, [N]; nothing if they are not needed.
  Tensor own_sums() const {
    Tensor result = at::empty({lambda_ != 0.0f ? of_.n : 0}, of_.filled.options());
    float* sums = result.mutable_data_ptr<float>();
    at::parallel_for(0, result.numel(), grain(of_.wide), [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; k += kLanes) {
        const int64_t there = std::min(kLanes, end - k);
        std::array<Lanes, kLanes> found{};
        for (int64_t i = 0; i < there; ++i)
          for (int64_t part = 0; part < parts_; ++part) found[i] += power(vector(k + i, part), order_);
        put(sums + k, sums_of_lanes(found) * (1.0f / kCopies), there);
      }
    });
    return result;
  }

  // -> y [B, G], or [B, G * D] at order 1, of rows that begin `stride` apart
  template <typename T>
  void forward(T* y, int64_t stride, const float* own_sums) const {
    std::vector<Lanes> own(own_);
    for (Lanes& w : own) w = lambda_ * power(w, order_);
    at::parallel_for(0, of_.b, grain(of_.f * of_.d), [&](int64_t begin, int64_t end) {
      std::vector<Lanes> found(kRows * registers_);
      for (int64_t first = begin; first < end; first += kRows) {
        each_sum(first, end, [&](int64_t part, int64_t q, const Sums& sums) {
          for (int64_t k = 0; k < kRows; ++k)
            for (int64_t t = 0; t < kTogether; ++t) {
              if (order_ > 1) {
                Lanes& to = found[k * registers_ + q + t];
                to = power(sums[k][t], order_) + (part ? to : Lanes{});
              } else if (first + k < end) {
                write(y + (first + k) * stride, part, q + t, sums[k][t]);
              }
            }
        });
        for (int64_t j = 0; j < (order_ > 1 ? blocks_ : 0); ++j) {
          std::array<Lanes, kRows> away{};
          for (int64_t c = 0; c < (lambda_ != 0.0f ? of_.f : 0); ++c)
            for (int64_t k = 0; k < kRows; ++k)
              away[k] += own[c * blocks_ + j] * own_sums[of_.place(std::min(first + k, end - 1), c)];
          for (int64_t k = 0; k < std::min(kRows, end - first); ++k)
            put(y + (first + k) * stride + j * kLanes, by_group(&found[k * registers_], j) - away[k], g_ - j * kLanes);
        }
      }
    });
  }

  // What weights get: [F, registers], and of those of the compensation [F, blocks], a lane per group, before their slope.
  struct Pulls {
    std::vector<Lanes> inside, own;
  };

  // The gradient of y, of rows that begin `stride` apart -> that of the vectors [N, wide], if to is there, and of the
  // weights, [F, blocks] each, a lane per group.
  template <typename T>
  Pulls backward(const T* gradient, int64_t stride, const float* own_sums, float* to) const {
    const int64_t tiles = (of_.b + kLanes - 1) / kLanes;
    // As many parts on any machine. What vectors get is as large as they are, so that there are few parts then; more threads
    // than that share out the fields, whose vectors are apart, and compute g more than once, which is nothing at order 1.
    const int64_t parts = std::clamp<int64_t>(tiles, 1, !to ? 16 : order_ > 1 ? 2 : 1);
    const int64_t shares = to ? std::clamp<int64_t>(at::get_num_threads() / parts, 1, of_.f) : 1;
    std::vector<Pulls> pulls(parts, {std::vector<Lanes>(of_.f * registers_), std::vector<Lanes>(of_.f * blocks_)});
    const Tensor other = at::empty({to && parts > 1 ? of_.n : 0, of_.wide}, of_.filled.options());
    const auto of_part = [&](int64_t part) { return to && part ? other.mutable_data_ptr<float>() : to; };
    at::parallel_for(0, to ? parts : 0, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) std::fill_n(of_part(part), of_.n * of_.wide, 0.0f);
    });
    at::parallel_for(0, parts * shares, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t part = task / shares, share = task % shares;
        pull(gradient, stride, {tiles * part / parts, tiles * (part + 1) / parts},
             {of_.f * share / shares, of_.f * (share + 1) / shares}, own_sums, pulls[part],
             of_part(part));
      }
    });
    Pulls& found = pulls[0];
    for (int64_t part = 1; part < parts; ++part) {
      for (size_t i = 0; i < found.inside.size(); ++i) found.inside[i] += pulls[part].inside[i];
      for (size_t i = 0; i < found.own.size(); ++i) found.own[i] += pulls[part].own[i];
    }
    const float* more = other.const_data_ptr<float>();
    at::parallel_for(0, other.numel(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[i] += more[i];
    });
    Pulls summed{std::vector<Lanes>(found.own.size()), std::move(found.own)};
    for (int64_t i = 0; i < of_.f * blocks_; ++i) {
      summed.inside[i] = by_group(&found.inside[i / blocks_ * registers_], i % blocks_);
      summed.own[i] *= -lambda_ * static_cast<float>(order_) * power(own_[i], order_ - 1);
    }
    return summed;
  }

  Tensor weights(const std::vector<Lanes>& values) const {
    Tensor result = at::empty({of_.f, g_}, of_.filled.options());
    for (int64_t c = 0; c < of_.f; ++c)
      for (int64_t j = 0; j < blocks_; ++j)
        put(result.mutable_data_ptr<float>() + c * g_ + j * kLanes, values[c * blocks_ + j], g_ - j * kLanes);
    return result;
  }

 private:
  static constexpr int64_t kCopies = kLanes / kPiece, kRows = 4, kTogether = kRegisters / 8;
  using Sums = std::array<std::array<Lanes, kTogether>, kRows>;

  static int64_t register_of(int64_t group) { return group / kLanes * kPiece + group % kPiece; }

  Lanes vector(int64_t k, int64_t part) const {
    return repeated<kPiece>(of_.vectors + k * of_.wide + part * kPiece, std::make_index_sequence<kLanes>());
  }

  // work(part, q, sums) for kTogether registers from q on of every part, in kRows rows from `first` on; the last one stands
  // for those behind it.
  template <typename Work>
  void each_sum(int64_t first, int64_t end, const Work& work) const {
    std::array<const int32_t*, kRows> rows;
    for (int64_t k = 0; k < kRows; ++k) rows[k] = of_.places + std::min(first + k, end - 1) * of_.f;
    of_.fetch<false>(of_.vectors, first + 2 * kRows, kRows, {0, of_.f});
    for (int64_t part = 0; part < parts_; ++part)
      for (int64_t q = 0; q < registers_; q += kTogether) {
        Sums sums{};
        for (int64_t c = 0; c < of_.f; ++c) {
          const Lanes* weights = &inside_[c * registers_ + q];
          for (int64_t k = 0; k < kRows; ++k) {
            const Lanes x = vector(rows[k][c], part);
            for (int64_t t = 0; t < kTogether; ++t) sums[k][t] += x * weights[t];
          }
        }
        work(part, q, Sums(sums));  // a copy, so that sums stay in registers whatever work() is
      }
  }

  // Block j of groups, a lane each, from what registers hold of them.
  Lanes by_group(const Lanes* values, int64_t j) const {
    std::array<Lanes, kLanes> found{};
    for (int64_t q = 0; q < std::min(kPiece, registers_ - j * kPiece); ++q) found[q] = values[j * kPiece + q];
    return sums_of_lanes<kPiece / 2>(found);
  }

  // At order 1: where a register's numbers are in a row of y. -> work(first lane, first column, how many)
  template <typename Work>
  void each_copy(int64_t part, int64_t q, const Work& work) const {
    for (int64_t s = 0; s < kCopies; ++s) {
      const int64_t group = q / kPiece * kLanes + s * kPiece + q % kPiece;
      if (group < g_) work(s * kPiece, group * of_.d + part * kPiece, std::min(kPiece, of_.d - part * kPiece));
    }
  }

  template <typename T>
  void write(T* y, int64_t part, int64_t q, const Lanes& values) const {
    each_copy(part, q, [&](int64_t lane, int64_t column, int64_t count) {
      if (count == kLanes) return put(y + column, values, kLanes);
      for (int64_t l = 0; l < count; ++l) y[column + l] = static_cast<T>(values[lane + l]);
    });
  }

  template <typename T>
  Lanes read(const T* y, int64_t part, int64_t q) const {
    Lanes found{};
    each_copy(part, q, [&](int64_t lane, int64_t column, int64_t count) {
      if (count == kLanes)
        found = lanes_of(y + column);
      else
        for (int64_t l = 0; l < count; ++l) found[lane + l] = static_cast<float>(y[column + l]);
    });
    return found;
  }

  // The gradients of g in kLanes rows from `first` on, zeros for those that are not there, and behind them that of y.
  template <typename T>
  void slope(const T* gradient, int64_t stride, int64_t first, Lanes* slopes) const {
    const int64_t rows = std::min(kLanes, of_.b - first);
    std::fill(slopes + rows * kept_, slopes + kLanes * kept_, Lanes{});
    for (int64_t i = 0; i < rows; ++i) {
      const T* from = gradient + (first + i) * stride;
      for (int64_t q = 0; order_ == 1 && q < parts_ * registers_; ++q)
        slopes[i * kept_ + q] = read(from, q / registers_, q % registers_);
      for (int64_t j = 0; order_ > 1 && j < blocks_; ++j) {
        __builtin_prefetch(from + std::min(kLanes, of_.b - 1 - first - i) * stride + j * kLanes);
        slopes[(i + 1) * kept_ - blocks_ + j] = lanes_of(from + j * kLanes, g_ - j * kLanes);
      }
    }
    if (order_ == 1) return;
    Ints firsts;
    for (int64_t l = 0; l < kLanes; ++l) firsts[l] = static_cast<int32_t>(l / kPiece * kPiece);
    for (int64_t i = 0; i < rows; i += kRows)
      each_sum(first + i, first + rows, [&](int64_t part, int64_t q, const Sums& sums) {
        for (int64_t k = 0; k < std::min(kRows, rows - i); ++k)
          for (int64_t t = 0; t < kTogether; ++t) {
            Lanes* row = slopes + (i + k) * kept_;
            const Lanes above = spread(row[kept_ - blocks_ + (q + t) / kPiece],
                                       firsts + static_cast<int32_t>((q + t) % kPiece));
            row[part * registers_ + q + t] = static_cast<float>(order_) * above * power(sums[k][t], order_ - 1);
          }
      });
  }

  // Of some tiles and fields: what weights get, and the fields' vectors if to is there.
  template <typename T>
  void pull(const T* gradient, int64_t stride, std::pair<int64_t, int64_t> tiles, std::pair<int64_t, int64_t> fields,
            const float* own_sums, Pulls& pulls, float* to) const {
    std::vector<Lanes> slopes(kLanes * kept_);
    for (int64_t first = tiles.first * kLanes; first < tiles.second * kLanes; first += kLanes) {
      if (to) of_.fetch<true>(to, first, kLanes, fields);
      if (order_ == 1) of_.fetch<false>(of_.vectors, first + kLanes, kLanes, fields);
      slope(gradient, stride, first, slopes.data());
      for (int64_t c = fields.first; c < fields.second; ++c) {
        const Lines lines{slopes.data(), of_.places_of(first, c)};
        if (lambda_ != 0.0f) pull_own(lines, own_sums, &pulls.own[c * blocks_]);
        to ? of_lines<true>(lines, c, &pulls.inside[c * registers_], to)
           : of_lines<false>(lines, c, &pulls.inside[c * registers_], to);
      }
    }
  }

  // kLanes rows: what is kept of them, and where the vectors of one field are.
  struct Lines {
    const Lanes* slopes;
    std::array<int64_t, kLanes> places;
  };

  // What compensation says of field c: pulls of its weights.
  void pull_own(const Lines& lines, const float* own_sums, Lanes* pulls) const {
    for (int64_t j = 0; j < blocks_; ++j) {
      std::array<Lanes, 2> pull{pulls[j]};  // sums that need not wait for each other
      for (int64_t i = 0; i < kLanes; ++i)
        pull[i % 2] += lines.slopes[(i + 1) * kept_ - blocks_ + j] * own_sums[lines.places[i]];
      pulls[j] = pull[0] + pull[1];
    }
  }

  // What, by compensation, the gradients of the vectors of field c have of the powers of these, a lane per row.
  Lanes push_away(const Lines& lines, int64_t c) const {
    std::array<Lanes, kLanes> pushed{};
    for (int64_t j = 0; j < blocks_; ++j) {
      const Lanes weight = power(own_[c * blocks_ + j], order_);
      for (int64_t i = 0; i < kLanes; ++i) pushed[i] += lines.slopes[(i + 1) * kept_ - blocks_ + j] * weight;
    }
    return sums_of_lanes(pushed) * (-lambda_ * static_cast<float>(order_) / kCopies);
  }

  // What the weights of field c get, and its vectors if somebody wants that.
  template <bool kVectors>
  void of_lines(const Lines& lines, int64_t c, Lanes* pulls, float* to) const {
    Lanes away{};
    if (kVectors && lambda_ != 0.0f) away = push_away(lines, c);
    for (int64_t part = 0; part < parts_; ++part) {
      int64_t q = 0;
      for (; q + 2 * kTogether <= registers_; q += 2 * kTogether)
        of_registers<kVectors, 2 * kTogether>(lines, c, part, q, away, pulls, to);
      if (q < registers_) of_registers<kVectors, kTogether>(lines, c, part, q, away, pulls, to);
    }
  }

  template <bool kVectors, int64_t kWide>
  void of_registers(const Lines& lines, int64_t c, int64_t part, int64_t q, const Lanes& away, Lanes* pulls, float* to) const {
    std::array<Lanes, kWide> weight, pull;
    for (int64_t t = 0; t < kWide; ++t) {
      weight[t] = inside_[c * registers_ + q + t];
      pull[t] = pulls[q + t];
    }
    const int64_t wide = of_.wide, kept = kept_, order = order_;  // in registers, whatever is written
    const float* vectors = of_.vectors + part * kPiece;
    const Lanes* slope = lines.slopes + part * registers_ + q;
    to += part * kPiece;
    for (int64_t i = 0; i < kLanes; ++i, slope += kept) {
      const int64_t k = lines.places[i] * wide;
      const Lanes x = repeated<kPiece>(vectors + k, std::make_index_sequence<kLanes>());
      std::array<Lanes, 2> sums{};  // that need not wait for each other
      if (kVectors && q == 0) sums[0] = away[i] * power(x, order - 1);
      for (int64_t t = 0; t < kWide; ++t) {
        pull[t] += slope[t] * x;
        if (kVectors) sums[t % 2] += slope[t] * weight[t];
      }
      if (kVectors) add_pieces<kPiece>(to + k, sums[0] + sums[1]);
    }
    for (int64_t t = 0; t < kWide; ++t) pulls[q + t] = pull[t];
  }

  const LookedUp& of_;
  int64_t order_, g_, parts_, blocks_, registers_, kept_;  // registers per part, and per row of the gradients
  float lambda_;
  std::vector<Lanes> inside_, own_;  // [F, registers] and [F, blocks]
};

// work(GroupPowers) of the pieces that the vectors' width makes.
template <typename Work>
void by_piece(const LookedUp& of, const Tensor& inside, const std::optional<Tensor>& own, int64_t order, double lambda,
              const Work& work) {
  TORCH_CHECK(order >= 1, "an order of ", order);
  check(inside, at::kFloat, 2, "inside");
  if (own) {
    check(*own, at::kFloat, 2, "own");
    TORCH_CHECK(own->sizes() == inside.sizes(), "shapes do not fit");
  }
  const auto with = [&]<int64_t kPiece>() { work(GroupPowers<kPiece>(of, inside, own.value_or(inside), order, lambda)); };
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
  by_piece(of, inside, own, order, lambda, [&](const auto& powers) {
    own_sums = powers.own_sums();
    const float* sums = own_sums.const_data_ptr<float>();
    result.scalar_type() == at::kBFloat16
        ? powers.forward(result.mutable_data_ptr<BFloat16>() + column, result.size(1), sums)
        : powers.forward(result.mutable_data_ptr<float>() + column, result.size(1), sums);
  });
  return own_sums;
}

// The gradients of power_sums() from that of result: of the vectors [N, D], of inside, and of own if it was given. That of
// the vectors is empty if nobody wants it.
std::tuple<Tensor, Tensor, Tensor> power_sums_backward(const Tensor& gradient, int64_t column, const Tensor& vectors,
                                                       const std::optional<Tensor>& places, const Tensor& inside,
                                                       const std::optional<Tensor>& own, const Tensor& own_sums,
                                                       int64_t order, double lambda, bool wants_vectors) {
  const LookedUp of(vectors, places, inside.size(0));
  const int64_t g = inside.size(1);
  of.check_columns(gradient, column, g * (order == 1 ? of.d : 1));
  Tensor of_vectors = at::empty({wants_vectors ? of.n : 0, of.wide}, vectors.options());
  float* to = wants_vectors ? of_vectors.mutable_data_ptr<float>() : nullptr;
  Tensor of_inside, of_own = at::empty({0, g}, inside.options());
  by_piece(of, inside, own, order, lambda, [&](const auto& powers) {
    check(own_sums, at::kFloat, 1, "own_sums");
    const float* sums = own_sums.const_data_ptr<float>();
    auto pulls = gradient.scalar_type() == at::kBFloat16
                     ? powers.backward(gradient.const_data_ptr<BFloat16>() + column, gradient.size(1), sums, to)
                     : powers.backward(gradient.const_data_ptr<float>() + column, gradient.size(1), sums, to);
    if (own)
      of_own = powers.weights(pulls.own);
    else
      for (size_t i = 0; i < pulls.own.size(); ++i) pulls.inside[i] += pulls.own[i];
    of_inside = powers.weights(pulls.inside);
  });
  return {of.wide == of.d ? of_vectors : of_vectors.narrow(1, 0, of.d).contiguous(), of_inside, of_own};
}

}  // namespace
