// Gradients of fields and of weights, from those of their combinations.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "combinations.h"
#include "fields.h"
#include "tiles.h"

namespace {

// What fields get. Neighbours of which all fields but the last two are the same have a stem, these fields, of which
// pairs have none. To a field that meets others under a stem, every one of these gives its own vector by the gradient
// of the two; what comes together so, q, times the stem is the field's, and half the sum of q times the field, over the
// fields, the stem's. Two fields at a time read the others, and what they get stays in registers until it is whole.
// Where fields meet few others, that is more work than run by run: the last field gets what the others make together,
// and they the sum of last fields.
class FieldPull {
 public:
  explicit FieldPull(const Combinations& of_) : of(of_), weights(of.weighted > 1 ? (of.m + 1) * of.d : 0) {
    if (of.weighted > 1) std::copy_n(of.weights, of.m * of.d, weights.begin());
    for (int64_t begin = 0; begin < of.m;) {
      int64_t end = begin + 1;
      while (end < of.m && of.same(of.p - 2, begin, end)) ++end;
      stems.push_back({begin, end, pairs_of(begin, end)});
      begin = end;
    }
  }

  // Of a tile x and gradients g [M + 1] of its combinations, the last one zero: the gradient y of x. room is for 2 * D.
  void operator()(const Lanes* x, const Lanes* g, Lanes* room, Lanes* y) const {
    std::fill(y, y + of.f * of.d, Lanes{});
    for (const Stem& stem : stems) of.weighted > 1 ? pull<true>(stem, x, g, room, y) : pull<false>(stem, x, g, room, y);
  }

 private:
  // Where a tile has a field, and the combinations in which the first and the second of two others meet it; M where one
  // does not.
  struct Meeting {
    int64_t other, first, second;
  };
  struct Two {
    int64_t first, second;
    std::vector<Meeting> meetings;
  };
  struct Stem {
    int64_t begin, end;  // its combinations
    std::vector<Two> twos;

    bool dense() const { return end - begin >= 4 * static_cast<int64_t>(twos.size()); }  // two others for every field
  };

  // The fields of combinations, but for their stem, two by two; those that stand in one place, and so meet the same
  // others, first.
  std::vector<Two> pairs_of(int64_t begin, int64_t end) const {
    std::vector<Two> twos;
    std::vector<int64_t> place(of.f, -1), met;  // among the fields; where among the meetings of two a field is
    int64_t fields = 0;
    for (int64_t s = of.p - 2; s < of.p; ++s)
      for (int64_t k = begin; k < end; ++k) {
        const int64_t field = of.field(s, k);
        if (place[field] >= 0) continue;
        place[field] = fields++;
        place[field] % 2 ? void(twos.back().second = field) : twos.push_back({field, field, {}});
      }
    met.assign(twos.size() * of.f, -1);
    for (int64_t k = begin; k < end; ++k)
      for (int64_t s = of.p - 2; s < of.p; ++s) {
        const int64_t own = place[of.field(s, k)], other = of.field(2 * of.p - 3 - s, k);
        Two& two = twos[own / 2];
        int64_t& at = met[own / 2 * of.f + other];
        const auto mine = own % 2 ? &Meeting::second : &Meeting::first;
        if (at < 0 || two.meetings[at].*mine < of.m) {
          at = static_cast<int64_t>(two.meetings.size());
          two.meetings.push_back({other * of.d, of.m, of.m});
        }
        two.meetings[at].*mine = k;
      }
    return twos;
  }

  template <bool kWeighted>
  void pull(const Stem& stem, const Lanes* x, const Lanes* g, Lanes* room, Lanes* y) const {
    if (stem.dense()) {
      const Lanes* shared = of.p > 2 ? of.shared(x, stem.begin, of.p - 2, room) : nullptr;
      Lanes* pulled = room + of.d;
      std::fill(pulled, pulled + of.d, Lanes{});
      in_blocks([&]<int64_t kBlock>(int64_t j) {
        for (const Two& two : stem.twos) meet<kBlock, kWeighted>(two, j, x, g, shared, y, pulled);
      });
      hand_out(stem.begin, of.p - 2, pulled, x, y);
      return;
    }
    for (int64_t begin = stem.begin, end; begin < stem.end; begin = end) {
      for (end = begin + 1; end < stem.end && of.same(of.p - 1, begin, end);) ++end;
      const Lanes* shared = of.shared(x, begin, of.p - 1, room);
      in_blocks([&]<int64_t kBlock>(int64_t j) {
        run<kBlock, kWeighted>(begin, end, j, x, g, shared, y, room + of.d);
      });
      hand_out(begin, of.p - 1, room + of.d, x, y);
    }
  }

  // work<n>(j) of all D values, n from j on.
  template <typename Work>
  void in_blocks(const Work& work) const {
    constexpr int64_t kBlock = kRegisters / 4;
    int64_t j = 0;
    for (; j + kBlock <= of.d; j += kBlock) work.template operator()<kBlock>(j);
    for (; j < of.d; ++j) work.template operator()<1>(j);
  }

  // To each of the first n fields of combination k what they get together, times the others.
  void hand_out(int64_t k, int64_t n, const Lanes* pulled, const Lanes* x, Lanes* y) const {
    for (int64_t s = 0; s < n; ++s)
      for (int64_t i = 0; i < of.d; ++i) {
        Lanes others = pulled[i];
        for (int64_t o = 0; o < n; ++o)
          if (o != s) others *= x[of.field(o, k) * of.d + i];
        y[of.field(s, k) * of.d + i] += others;
      }
  }

  // kBlock values, from j on, of what the last fields of a run get, and of what that gives to the others.
  template <int64_t kBlock, bool kWeighted>
  void run(int64_t begin, int64_t end, int64_t j, const Lanes* x, const Lanes* g, const Lanes* shared, Lanes* y,
           Lanes* pulled) const {
    std::array<Lanes, kBlock> sums{};
    for (int64_t k = begin; k < end; ++k) {
      const int64_t last = of.field(of.p - 1, k) * of.d + j;
#pragma GCC unroll 8
      for (int64_t i = 0; i < kBlock; ++i) {
        const Lanes scale = kWeighted ? g[k] * weights[k * of.d + j + i] : g[k];
        sums[i] += scale * x[last + i];
        y[last + i] += scale * shared[j + i];
      }
    }
#pragma GCC unroll 8
    for (int64_t i = 0; i < kBlock; ++i) pulled[j + i] = sums[i];
  }

  // kBlock values, from j on, of what two fields get, and, if they share something, of half of what that gets.
  template <int64_t kBlock, bool kWeighted>
  void meet(const Two& two, int64_t j, const Lanes* x, const Lanes* g, const Lanes* shared, Lanes* y,
            Lanes* pulled) const {
    std::array<Lanes, kBlock> first{}, second{};
    for (const Meeting& met : two.meetings) {
      const Lanes of_first = g[met.first], of_second = g[met.second];
      const Lanes* other = x + met.other + j;
      if constexpr (kWeighted) {
        const float *by_first = weights.data() + met.first * of.d + j;
        const float *by_second = weights.data() + met.second * of.d + j;
#pragma GCC unroll 8
        for (int64_t i = 0; i < kBlock; ++i) {
          first[i] += of_first * by_first[i] * other[i];
          second[i] += of_second * by_second[i] * other[i];
        }
      } else {
#pragma GCC unroll 8
        for (int64_t i = 0; i < kBlock; ++i) {
          first[i] += of_first * other[i];
          second[i] += of_second * other[i];
        }
      }
    }
    const int64_t a = two.first * of.d + j, b = two.second * of.d + j;
#pragma GCC unroll 8
    for (int64_t i = 0; i < kBlock; ++i) {
      if (shared) {
        pulled[j + i] += 0.5f * (x[a + i] * first[i] + x[b + i] * second[i]);
        first[i] *= shared[j + i];
        second[i] *= shared[j + i];
      }
      y[a + i] += first[i];
      y[b + i] += second[i];
    }
  }

  const Combinations& of;
  std::vector<float> weights;  // [M + 1, D], the last ones zero
  std::vector<Stem> stems;
};

// What weights that are vectors get, summed over rows: of combination k, g_k times the product of its fields. A row's
// values lie side by side, as its weights do.
class WeightPull {
 public:
  explicit WeightPull(const Combinations& of_)
      : of(of_), blocks(whole(of.d, kLanes) / kLanes), sums(of.weighted > 1 ? of.m * blocks : 0) {}

  // Adds the rows of the tile at row `first`, by gradients g [M], zero for rows that are not there.
  void add(int64_t first, const Lanes* g) {
    const Fields& fields = of.fields;
    const float* rows = fields.at(first, 0);
    int64_t width = of.d, stride = fields.stride;
    if (fields.places || fields.count(first) < kLanes || width % kLanes) {
      width = blocks * kLanes;
      stride = of.f * width;
      fields.copy(copied, first, width);
      rows = copied.data();
    }
    for (int64_t b = 0; b < blocks; ++b) {
      const auto values = [&](int64_t r, int64_t field) {
        return *reinterpret_cast<const LanesAnywhere*>(rows + r * stride + field * width + b * kLanes);
      };
      for (const Combinations::Run& run : of.runs) {
        std::array<Lanes, kLanes> head;
        for (int64_t r = 0; r < kLanes; ++r) {
          head[r] = values(r, of.field(0, run.begin));
          for (int64_t s = 1; s + 1 < of.p; ++s) head[r] *= values(r, of.field(s, run.begin));
        }
        for (int64_t k = run.begin; k < run.end; ++k) {
          const int64_t last = of.field(of.p - 1, k);
          std::array<Lanes, 4> found{};  // sums that need not wait for each other
          for (int64_t r = 0; r < kLanes; ++r) found[r % 4] += g[k][r] * head[r] * values(r, last);
          sums[k * blocks + b] += (found[0] + found[1]) + (found[2] + found[3]);
        }
      }
    }
  }

  // Adds what was found, to result [M, D].
  void add_to(float* result) const {
    for (int64_t k = 0; k < of.m && !sums.empty(); ++k)
      for (int64_t j = 0; j < of.d; ++j) result[k * of.d + j] += sums[k * blocks + j / kLanes][j % kLanes];
  }

 private:
  const Combinations& of;
  int64_t blocks;
  std::vector<Lanes> sums;  // [M, blocks]
  std::vector<float> copied;
};

// From the gradients of combinations to those of fields, in the shape of these, and of weights that are vectors, if there
// are any, [M, D]. work(part, pull) of every part of the rows gives pull(first, x, g) of its tiles: the tile x at row
// `first`, and gradients g [M + 1], the last one zero, as those of rows that are not there. begins is as
// FieldGradients has it.
template <typename Work>
std::tuple<Tensor, Tensor> pull_parts(const Tiles& rows, const Tensor& fields, const std::optional<Tensor>& begins,
                                      const Work& work) {
  const Combinations& of = rows.of;
  if (of.m == 0) return {at::zeros(fields.sizes(), fields.options()), at::zeros({0, of.d}, fields.options())};
  const FieldPull pull_fields(of);
  const int64_t shares = std::min<int64_t>(rows.parts, of.fields.places ? 4 : 16);
  FieldGradients of_fields(fields, of.fields, begins, shares);
  std::vector<WeightPull> weights(rows.parts, WeightPull(of));
  at::parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
    Tile y(of.f * of.d);
    std::vector<Lanes> room(2 * of.d);
    std::vector<float> row_by_row;
    for (int64_t share = begin; share < end; ++share) {
      of_fields.open(share);
      for (int64_t part = rows.parts * share / shares; part < rows.parts * (share + 1) / shares; ++part)
        work(part, [&](int64_t first, const Lanes* x, const Lanes* g) {
          pull_fields(x, g, room.data(), y.values.data());
          of_fields.add(share, y, first, row_by_row);
          if (of.weighted > 1) weights[part].add(first, g);
        });
    }
  });
  Tensor of_weights = at::zeros({of.weighted > 1 ? of.m : 0, of.d}, fields.options());
  for (const WeightPull& part : weights) part.add_to(of_weights.mutable_data_ptr<float>());
  return {of_fields.close(), of_weights};
}

}  // namespace
