// Look-ups: batches into rows of tables, rows into batches, and their gradients by row.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <memory>
#include <numeric>
#include <tuple>
#include <utility>
#include <vector>

#include "common.h"

namespace {

// What group() sorts: a row number above, the look-up's place below.
using Entry = uint64_t;
Entry entry(int32_t row, int64_t place) { return static_cast<Entry>(row) << 32 | static_cast<Entry>(place); }
int32_t row_in(Entry e) { return static_cast<int32_t>(e >> 32); }

// work(p, begin, end) for as many parts of n as there are threads that are worth starting.
template <typename Work>
void each_part(int64_t n, const Work& work) {
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), n / kGrain));
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) work(p, n * p / parts, n * (p + 1) / parts);
  });
}

// Sorts all entries at once, stably, by row numbers up to most: a radix sort for which every thread counts and then
// places the entries of its own part.
void sort_whole(std::unique_ptr<Entry[]>& front, int64_t n, int32_t most) {
  constexpr int kBits = 10, kBuckets = 1 << kBits;
  using Counts = std::array<int32_t, kBuckets>;
  std::unique_ptr<Entry[]> back(new Entry[n]);
  std::vector<Counts> places(at::get_num_threads());
  for (int shift = 0; shift < 31 && (most >> shift) != 0; shift += kBits) {
    const auto bucket = [shift](Entry e) { return (e >> (32 + shift)) & (kBuckets - 1); };
    for (Counts& counts : places) counts.fill(0);
    each_part(n, [&](int64_t p, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ++places[p][bucket(front[i])];
    });
    int32_t next = 0;
    for (int k = 0; k < kBuckets; ++k)
      for (Counts& counts : places) next += std::exchange(counts[k], next);
    each_part(n, [&](int64_t p, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) back[places[p][bucket(front[i])]++] = front[i];
    });
    front.swap(back);
  }
}

// The entries of one field's look-ups, rows [b] of which the least and the most are given, sorted into entries: few
// passes, inside the processor's cache. place(i) is where look-up i of the field lies in the batch; room has b entries.
template <typename Place>
void sort_field(const int32_t* rows, int64_t b, int32_t least, int32_t most, const Place& place, Entry* entries,
                Entry* room) {
  constexpr int kBits = 9, kBuckets = 1 << kBits;
  const int passes = std::max<int>(1, (std::bit_width(static_cast<uint32_t>(most - least)) + kBits - 1) / kBits);
  std::array<int32_t, kBuckets> places;
  const Entry* from = nullptr;
  for (int pass = 0; pass < passes; ++pass) {
    const auto bucket = [=](int32_t row) { return ((row - least) >> (pass * kBits)) & (kBuckets - 1); };
    places.fill(0);
    for (int64_t i = 0; i < b; ++i) ++places[bucket(rows[i])];  // in any order
    int32_t next = 0;
    for (int32_t& p : places) next += std::exchange(p, next);
    Entry* to = (passes - pass) % 2 ? entries : room;  // the last pass goes to entries
    if (pass == 0)
      for (int64_t i = 0; i < b; ++i) to[places[bucket(rows[i])]++] = entry(rows[i], place(i));
    else
      for (int64_t i = 0; i < b; ++i) to[places[bucket(row_in(from[i]))]++] = from[i];
    from = to;
  }
}

// keys int32 [B, F] -> [F, B].
void turn(const int32_t* keys, int64_t b, int64_t f, int32_t* turned) {
  constexpr int64_t kTogether = 16;  // rows, which fill a line of the cache for every field
  at::parallel_for(0, b, grain(f), [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += kTogether)
      for (int64_t c = 0; c < f; ++c)
        for (int64_t i = first; i < std::min(end, first + kTogether); ++i) turned[c * b + i] = keys[i * f + c];
  });
}

// index int32 [n], none negative -> rows int64 [U], rising; order int32 [n], the look-ups with those of one row side
// by side, in their order; begins int32 [U], where each row's begin. fields: how many look-ups in turn make a row of
// the batch; where each field's table rows lie behind the last one's, they are sorted field by field.
std::tuple<Tensor, Tensor, Tensor> group(const Tensor& index, int64_t fields) {
  check(index, at::kInt, 1, "index");
  const int64_t n = index.numel();
  TORCH_CHECK(fields > 0 && n % fields == 0, n, " look-ups are not rows of ", fields);
  const int64_t b = n / fields;
  const int32_t* keys = index.const_data_ptr<int32_t>();
  std::unique_ptr<int32_t[]> turned(new int32_t[fields > 1 ? n : 0]);
  if (fields > 1) turn(keys, b, fields, turned.get());
  const int32_t* by_field = fields > 1 ? turned.get() : keys;
  const int64_t pieces = fields > 1 ? fields : 16;  // without fields any that threads can share
  std::vector<int32_t> least(pieces), most(pieces);
  at::parallel_for(0, pieces, grain(n / pieces), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      int32_t low = INT32_MAX, high = 0;
      for (int64_t i = n * c / pieces; i < n * (c + 1) / pieces; ++i) {
        low = std::min(low, by_field[i]);
        high = std::max(high, by_field[i]);
      }
      least[c] = low;
      most[c] = high;
    }
  });
  TORCH_CHECK(*std::min_element(least.begin(), least.end()) >= 0, "index has a negative row number");
  bool apart = fields > 1;
  for (int64_t c = 1; c < fields; ++c) apart &= most[c - 1] < least[c];
  std::unique_ptr<Entry[]> entries(new Entry[n]);  // not filled, unlike a vector
  if (apart) {
    at::parallel_for(0, fields, grain(b), [&](int64_t begin, int64_t end) {
      std::unique_ptr<Entry[]> room(new Entry[b]);
      for (int64_t c = begin; c < end; ++c)
        sort_field(by_field + c * b, b, least[c], most[c], [=](int64_t i) { return i * fields + c; },
                   entries.get() + c * b, room.get());
    });
  } else {
    each_part(n, [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) entries[i] = entry(keys[i], i);
    });
    sort_whole(entries, n, *std::max_element(most.begin(), most.end()));
  }
  const auto opens = [&](int64_t i) { return i == 0 || row_in(entries[i]) != row_in(entries[i - 1]); };
  std::vector<int64_t> first(at::get_num_threads() + 1);
  each_part(n, [&](int64_t p, int64_t begin, int64_t end) {
    int64_t count = 0;
    for (int64_t i = begin; i < end; ++i) count += opens(i);
    first[p + 1] = count;
  });
  std::partial_sum(first.begin(), first.end(), first.begin());
  Tensor order = at::empty({n}, index.options()), begins = at::empty({first.back()}, index.options());
  Tensor rows = at::empty({first.back()}, index.options().dtype(at::kLong));
  int32_t *out = order.mutable_data_ptr<int32_t>(), *starts = begins.mutable_data_ptr<int32_t>();
  int64_t* row = rows.mutable_data_ptr<int64_t>();
  each_part(n, [&](int64_t p, int64_t begin, int64_t end) {
    int64_t k = first[p];
    for (int64_t i = begin; i < end; ++i) {
      out[i] = static_cast<int32_t>(entries[i]);
      if (opens(i)) {
        row[k] = row_in(entries[i]);
        starts[k++] = static_cast<int32_t>(i);
      }
    }
  });
  return {rows, order, begins};
}

// Where each look-up finds its row among the distinct ones: order and begins of group() -> int32 [n].
Tensor places(const Tensor& order, const Tensor& begins) {
  check(order, at::kInt, 1, "order");
  check(begins, at::kInt, 1, "begins");
  const int64_t n = order.numel(), u = begins.numel();
  const int32_t *from = order.const_data_ptr<int32_t>(), *starts = begins.const_data_ptr<int32_t>();
  Tensor result = at::empty({n}, order.options());
  int32_t* to = result.mutable_data_ptr<int32_t>();
  // By one thread, since two would write to the same lines; without a loop by row, whose few turns no processor foresees.
  const std::unique_ptr<uint8_t[]> opens(new uint8_t[n]());
  for (int64_t k = 0; k < u; ++k) {
    TORCH_CHECK_INDEX(starts[k] >= 0 && starts[k] < n, "a row begins at ", starts[k], " of ", n, " look-ups");
    opens[starts[k]] = 1;
  }
  int32_t k = -1;
  for (int64_t i = 0; i < n; ++i) {
    k += opens[i];
    to[from[i]] = k;
  }
  return result;
}

// Whether rows int64 [U] rise, which makes them distinct.
bool rising(const Tensor& rows) {
  check(rows, at::kLong, 1, "rows");
  const int64_t* row = rows.const_data_ptr<int64_t>();
  bool rises = true;
  for (int64_t k = 1; k < rows.numel(); ++k) rises &= row[k - 1] < row[k];
  return rises;
}

// table [V, D], index int32 [n] -> [n, D].
Tensor gather(const Tensor& table, const Tensor& index) {
  check(table, at::kFloat, 2, "table");
  check(index, at::kInt, 1, "index");
  const int64_t n = index.numel(), width = table.size(1), height = table.size(0);
  const int32_t* rows = index.const_data_ptr<int32_t>();
  const float* from = table.const_data_ptr<float>();
  Tensor result = at::empty({n, width}, table.options());
  float* to = result.mutable_data_ptr<float>();
  const auto copy = [&]<int64_t kWidth>(int64_t begin, int64_t end) {
    const int64_t d = kWidth ? kWidth : width;  // a copy of known length is no call
    for (int64_t i = begin; i < end; ++i) {
      if (i + kAhead < end) __builtin_prefetch(from + static_cast<int64_t>(rows[i + kAhead]) * d);
      std::memcpy(to + i * d, from + row_at(rows, i, height) * d, d * sizeof(float));
    }
  };
  at::parallel_for(0, n, grain(width), [&](int64_t begin, int64_t end) {
    width == 16 ? copy.template operator()<16>(begin, end) : copy.template operator()<0>(begin, end);
  });
  return result;
}

// Rows int64 [U] of several tables, each [V, D] with a D of its own -> [U, D] of each.
std::vector<Tensor> gather_rows(at::TensorList tables, const Tensor& rows) {
  check(rows, at::kLong, 1, "rows");
  struct Source {
    const float* from;
    float* to;
    int64_t width, height;
  };
  const int64_t u = rows.numel();
  std::vector<Tensor> found;
  std::vector<Source> sources;
  int64_t total = 0;
  for (const Tensor& table : tables) {
    check(table, at::kFloat, 2, "table");
    found.push_back(at::empty({u, table.size(1)}, table.options()));
    sources.push_back({table.const_data_ptr<float>(), found.back().mutable_data_ptr<float>(), table.size(1), table.size(0)});
    total += table.size(1);
  }
  const int64_t* row = rows.const_data_ptr<int64_t>();
  const auto copy = [&]<int64_t kWidth>(const Source& s, int64_t k, int64_t ahead) {
    const int64_t d = kWidth ? kWidth : s.width;  // a copy of known length is no call
    __builtin_prefetch(s.from + row[ahead] * d);
    std::memcpy(s.to + k * d, s.from + row_at(row, k, s.height) * d, d * sizeof(float));
  };
  at::parallel_for(0, u, grain(total), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k)
      for (const Source& s : sources) {
        const int64_t ahead = std::min(k + kAheadRows, end - 1);
        if (s.width == 16)
          copy.template operator()<16>(s, k, ahead);
        else if (s.width == 8)
          copy.template operator()<8>(s, k, ahead);
        else
          copy.template operator()<0>(s, k, ahead);
      }
  });
  return found;
}

// The sum of a row's fields: table [V, K], index int32 [B * F], field after field -> [B, K].
Tensor field_sums(const Tensor& table, const Tensor& index, int64_t fields) {
  check(table, at::kFloat, 2, "table");
  check(index, at::kInt, 1, "index");
  TORCH_CHECK(fields > 0 && index.numel() % fields == 0, index.numel(), " look-ups are not rows of ", fields);
  const int64_t b = index.numel() / fields, width = table.size(1), height = table.size(0);
  const int32_t* rows = index.const_data_ptr<int32_t>();
  const float* from = table.const_data_ptr<float>();
  Tensor result = at::empty({b, width}, table.options());
  float* to = result.mutable_data_ptr<float>();
  at::parallel_for(0, b, grain(fields * width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* sum = to + i * width;
      std::fill(sum, sum + width, 0.0f);
      for (int64_t k = i * fields; k < (i + 1) * fields; ++k) {
        if (k + kAhead < end * fields) __builtin_prefetch(from + static_cast<int64_t>(rows[k + kAhead]) * width);
        const int64_t r = row_at(rows, k, height);
        for (int64_t j = 0; j < width; ++j) sum[j] += from[r * width + j];
      }
    }
  });
  return result;
}

// Its gradient by rows: gradient [B, K], and order [n] and begins [U] of group() -> [U, K].
Tensor field_sums_backward(const Tensor& gradient, const Tensor& order, const Tensor& begins, int64_t fields) {
  check(gradient, at::kFloat, 2, "gradient");
  check(order, at::kInt, 1, "order");
  check(begins, at::kInt, 1, "begins");
  const int64_t n = order.numel(), u = begins.numel(), width = gradient.size(1);
  TORCH_CHECK(gradient.size(0) * fields == n, n, " look-ups of ", fields, " fields in ", gradient.size(0), " rows");
  const float* from = gradient.const_data_ptr<float>();
  const int32_t *look_ups = order.const_data_ptr<int32_t>(), *starts = begins.const_data_ptr<int32_t>();
  Tensor result = at::empty({u, width}, gradient.options());
  float* to = result.mutable_data_ptr<float>();
  // Threads share the look-ups, not the rows: a few rows have most of them.
  at::parallel_for(0, n, grain(width), [&](int64_t begin, int64_t end) {
    const auto row_from = [&](int64_t i) { return std::lower_bound(starts, starts + u, i) - starts; };
    for (int64_t k = row_from(begin), last = row_from(end); k < last; ++k) {
      float* sum = to + k * width;
      std::fill(sum, sum + width, 0.0f);
      for (int64_t i = starts[k], stop = k + 1 < u ? starts[k + 1] : n; i < stop; ++i) {
        const float* g = from + look_ups[i] / static_cast<int32_t>(fields) * width;
        for (int64_t j = 0; j < width; ++j) sum[j] += g[j];
      }
    }
  });
  return result;
}

// Rows index int32 [n] of columns of any type, each [N, ...]: one pass fetches the rows of all columns ahead.
std::vector<Tensor> take(at::TensorList columns, const Tensor& index) {
  check(index, at::kInt, 1, "index");
  struct Column {
    const char* from;
    char* to;
    int64_t bytes;
  };
  constexpr int64_t kLine = 64;
  const int64_t n = index.numel(), height = columns.empty() ? 0 : columns[0].size(0);
  std::vector<Tensor> found;
  std::vector<Column> copies;
  int64_t total = 0;
  for (const Tensor& column : columns) {
    TORCH_CHECK(column.device().is_cpu() && column.is_contiguous() && column.size(0) == height,
                "columns have to be contiguous, on the CPU and of one length");
    auto shape = column.sizes().vec();
    shape[0] = n;
    found.push_back(at::empty(shape, column.options()));
    const int64_t bytes = height ? static_cast<int64_t>(column.nbytes()) / height : 0;
    copies.push_back({static_cast<const char*>(column.const_data_ptr()), static_cast<char*>(found.back().data_ptr()), bytes});
    total += bytes;
  }
  const int32_t* rows = index.const_data_ptr<int32_t>();
  at::parallel_for(0, n, grain(total / sizeof(float)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = row_at(rows, i, height);
      for (const Column& c : copies) {
        if (i + kAheadRows < end)
          for (int64_t at = 0; at < c.bytes; at += kLine)
            __builtin_prefetch(c.from + rows[i + kAheadRows] * c.bytes + at);
        std::memcpy(c.to + i * c.bytes, c.from + row * c.bytes, c.bytes);
      }
    }
  });
  return found;
}

}  // namespace
