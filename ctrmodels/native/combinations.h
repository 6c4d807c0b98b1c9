// Combinations of fields, and passes over the rows of a batch that read all of them.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "common.h"
#include "fields.h"
#include "tiles.h"

namespace {

// M combinations of p fields each, and weights [M, D] or [M, 1] of their products, if there are any. What a tile gives
// here is weighted by vectors, not by single numbers, which cost less elsewhere. Neighbours of which all fields but the
// last are the same are a run: what the other fields make together is computed once for it. Where the last fields of
// the next run are the last ones of this one, as of all pairs in order, the two share what they read.
struct Combinations {
  struct Run {
    int64_t begin, end;
    bool shares = false;

    int64_t size() const { return end - begin; }
  };

  const int64_t* slots;  // [p, M]
  const float* weights = nullptr;
  Fields fields;
  int64_t p, m, f, d, weighted = 0;  // weights per combination
  std::vector<Run> runs;

  Combinations(const Tensor& fields_, const std::optional<Tensor>& places, const std::optional<Tensor>& weights_,
               const Tensor& slots_)
      : fields(fields_, places), p(slots_.size(0)), m(slots_.size(1)), f(fields.f), d(fields.d) {
    check(slots_, at::kLong, 2, "slots");
    TORCH_CHECK(p >= 2, "a combination has two fields or more");
    slots = slots_.const_data_ptr<int64_t>();
    for (int64_t k = 0; k < p * m; ++k) row_at(slots, k, f);
    if (weights_) {
      check(*weights_, at::kFloat, 2, "weights");
      weighted = weights_->size(1);
      TORCH_CHECK(weights_->size(0) == m && (weighted == d || weighted == 1), "shapes do not fit");
      weights = weights_->const_data_ptr<float>();
    }
    for (int64_t k = 0; k < m; ++k) {
      if (k > 0 && same(p - 1, k - 1, k))
        runs.back().end = k + 1;
      else
        runs.push_back({k, k + 1});
    }
    for (size_t r = 0; r + 1 < runs.size(); ++r) {
      const int64_t* last = slots + (p - 1) * m;
      const Run& next = runs[r + 1];
      runs[r].shares = next.size() <= runs[r].size() &&
                       std::equal(last + next.begin, last + next.end, last + runs[r].end - next.size());
    }
  }

  // The field in place s of combination k.
  int64_t field(int64_t s, int64_t k) const { return slots[s * m + k]; }

  // Whether the first n fields of two combinations are the same.
  bool same(int64_t n, int64_t a, int64_t b) const {
    for (int64_t s = 0; s < n; ++s)
      if (field(s, a) != field(s, b)) return false;
    return true;
  }

  // What the first n fields of combination k make together, of a tile x.
  const Lanes* shared(const Lanes* x, int64_t k, int64_t n, Lanes* room) const {
    if (n == 1) return x + field(0, k) * d;
    for (int64_t j = 0; j < d; ++j) {
      room[j] = x[field(0, k) * d + j];
      for (int64_t s = 1; s < n; ++s) room[j] *= x[field(s, k) * d + j];
    }
    return room;
  }
};

// The sum of the lanes from `begin` to `end`.
double sum_of(Lanes lanes, int64_t begin = 0, int64_t end = kLanes) {
  double found = 0.0;
  for (int64_t l = begin; l < end; ++l) found += lanes[l];
  return found;
}

// Of a tile x: take(k, sum) of n combinations from each of begins on, whose other fields make heads and whose last
// fields are the same ones; kTails at a time, and of what is left over half as many. kWidth is D, or 0 for any.
template <int64_t kWidth, int64_t kTails, size_t kHeads, typename Take>
void sum_runs(const Combinations& of, const Lanes* x, const Ahead& ahead, const std::array<const Lanes*, kHeads>& heads,
              std::array<int64_t, kHeads> begins, int64_t n, const Take& take) {
  const int64_t* last = of.slots + (of.p - 1) * of.m;
  const int64_t d = kWidth ? kWidth : of.d;
  for (; n >= kTails; n -= kTails) {
    std::array<const Lanes*, kTails> tails;
    for (int64_t i = 0; i < kTails; ++i) tails[i] = x + last[begins[0] + i] * d;
    std::array<std::array<Lanes, kTails>, kHeads> sums{};
    const auto add_up = [&](const auto& weighted) {
      for (int64_t j = 0; j < d; ++j)
#pragma GCC unroll 4
        for (int64_t i = 0; i < kTails; ++i) {
          const Lanes tail = tails[i][j];
#pragma GCC unroll 2
          for (size_t h = 0; h < kHeads; ++h) sums[h][i] += weighted(heads[h][j], begins[h] + i, j) * tail;
        }
    };
    if (of.weighted > 1)
      add_up([d, weights = of.weights](Lanes head, int64_t k, int64_t j) { return head * weights[k * d + j]; });
    else
      add_up([](Lanes head, int64_t, int64_t) { return head; });
#pragma GCC unroll 2
    for (size_t h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
      for (int64_t i = 0; i < kTails; ++i) take(begins[h] + i, sums[h][i]);
      ahead.of(begins[h], kTails);
      begins[h] += kTails;
    }
  }
  if constexpr (kTails > 1) sum_runs<kWidth, kTails / 2>(of, x, ahead, heads, begins, n, take);
}

// Of a tile x: take(k, sum) of every combination; room is for 2 * D values.
template <int64_t kWidth, typename Take>
void each_sum(const Combinations& of, const Lanes* x, const Ahead& ahead, Lanes* room, const Take& take) {
  constexpr int64_t kTails = 4;
  for (size_t r = 0; r < of.runs.size(); ++r) {
    const Combinations::Run& run = of.runs[r];
    const Lanes* head = of.shared(x, run.begin, of.p - 1, room);
    if (!run.shares) {
      sum_runs<kWidth, kTails, 1>(of, x, ahead, {head}, {run.begin}, run.size(), take);
      continue;
    }
    const Combinations::Run& next = of.runs[++r];
    const int64_t alone = run.size() - next.size();
    sum_runs<kWidth, kTails, 1>(of, x, ahead, {head}, {run.begin}, alone, take);
    sum_runs<kWidth, kTails, 2>(of, x, ahead, {head, of.shared(x, next.begin, of.p - 1, room + of.d)},
                                {run.begin + alone, next.begin}, next.size(), take);
  }
}

// The rows of a batch, in tiles, and these in parts, which are as many on any machine.
struct Tiles {
  const Combinations& of;
  int64_t b, tiles, parts;

  explicit Tiles(const Combinations& of_) : Tiles(of_, of_.fields.b) {}

  // Of the first b rows.
  Tiles(const Combinations& of_, int64_t b_)
      : of(of_), b(b_), tiles((b + kLanes - 1) / kLanes),
        // To bring the fields of a row side by side takes as long as some combinations, however few there are.
        parts(std::clamp<int64_t>(b * (of.f + of.m) * of.d / (16 * kGrain), 1, std::clamp<int64_t>(tiles, 1, 16))) {}

  // The rows, and parts of them, that others have, for other combinations of the same fields.
  Tiles(const Combinations& of_, const Tiles& others) : of(of_), b(others.b), tiles(others.tiles), parts(others.parts) {}

  // The values of a vector [B] that belong to the tile at row `first`, zero behind the last.
  Lanes at(const float* vector, int64_t first) const {
    Lanes values{};
    std::copy_n(vector + first, std::min(kLanes, b - first), reinterpret_cast<float*>(&values));
    return values;
  }

  // One for the rows that belong to that tile, zero behind the last.
  Lanes there(int64_t first) const {
    Lanes ones{};
    for (int64_t l = 0; l < std::min(kLanes, b - first); ++l) ones[l] = 1.0f;
    return ones;
  }

  // work(first, take, fields) of every tile of a part, from row `first` on: take(f) calls f(k, x) for all combinations.
  template <typename Work>
  void of_part(int64_t part, const Work& work) const {
    Tile x(of.f * of.d);
    std::vector<Lanes> room(2 * of.d);
    std::vector<float> rows;
    each_tile(part, [&](int64_t first) {
      of.fields.load(x, first, rows);
      const Ahead ahead(of.fields, first + kLanes);
      const auto take = [&](const auto& f) {
        of.d == 16 ? each_sum<16>(of, x.values.data(), ahead, room.data(), f)
                   : each_sum<0>(of, x.values.data(), ahead, room.data(), f);
      };
      work(first, take, x.values.data());
    });
  }

  // work(first) of every tile of a part.
  template <typename Work>
  void each_tile(int64_t part, const Work& work) const {
    for (int64_t t = tiles * part / parts; t < tiles * (part + 1) / parts; ++t) work(t * kLanes);
  }

  // add(first, take, sums) of every tile adds to sums [M] -> those of all rows.
  template <typename Add>
  std::vector<Lanes> sums(const Add& add) const {
    std::vector<std::vector<Lanes>> found(parts, std::vector<Lanes>(of.m));
    at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part)
        of_part(part, [&](int64_t first, const auto& take, const Lanes*) { add(first, take, found[part].data()); });
    });
    return added_up(found);
  }

  // What parts found, one after the other.
  static std::vector<Lanes> added_up(std::vector<std::vector<Lanes>>& found) {
    for (size_t part = 1; part < found.size(); ++part)
      for (size_t i = 0; i < found[0].size(); ++i) found[0][i] += found[part][i];
    return std::move(found[0]);
  }
};

}  // namespace
