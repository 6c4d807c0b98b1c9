// The steps of a training that no operation of torch does in one pass over memory. All run on a CPU, in float32
// unless said otherwise, and give the same bits whatever the number of threads, which never decides how a sum is split.
//
// Notation: n look-ups, U distinct rows among them, V rows of a table, D width, B rows of a batch, F fields.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using at::BFloat16;
using at::Tensor;

// Look-ups, and rows to be changed, that are fetched ahead: a row has to arrive from memory before its turn comes.
constexpr int64_t kAhead = 64, kAheadRows = 24;
// Values that a thread should have at least, below which starting it costs more than it saves.
constexpr int64_t kGrain = 16384;

int64_t grain(int64_t width) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width)); }

void check(const Tensor& t, at::ScalarType type, int64_t dim, const char* name) {
  TORCH_CHECK(t.device().is_cpu() && t.is_contiguous() && t.scalar_type() == type && t.dim() == dim, name,
              " has to be a contiguous CPU tensor of type ", type, " with ", dim, " dimensions, not ", t.scalar_type(),
              t.sizes());
}

template <typename Index>
int64_t row_at(const Index* rows, int64_t k, int64_t height) {
  TORCH_CHECK_INDEX(rows[k] >= 0 && rows[k] < height, "row ", rows[k], " of a table of ", height);
  return rows[k];
}

// ---------------------------------------------------------------------------------------------------------------
// Look-ups

// index int32 [n], none negative -> rows int64 [U], rising; order int32 [n], the look-ups with those of one row side
// by side, in their order; begins int32 [U], where each row's begin. A stable radix sort of the row numbers, for
// which every thread counts and then places the entries of its own part.
std::tuple<Tensor, Tensor, Tensor> group(const Tensor& index) {
  check(index, at::kInt, 1, "index");
  constexpr int kBits = 10, kBuckets = 1 << kBits;
  using Counts = std::array<int32_t, kBuckets>;
  const int64_t n = index.numel();
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), n / kGrain));
  const auto part = [&](int64_t p) { return n * p / parts; };
  const int32_t* keys = index.const_data_ptr<int32_t>();
  std::unique_ptr<uint64_t[]> front(new uint64_t[n]), back(new uint64_t[n]);  // not filled, unlike a vector
  std::vector<uint32_t> largest(parts);
  const auto each_part = [&](const auto& work) {
    at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) work(p, part(p), part(p + 1));
    });
  };
  each_part([&](int64_t p, int64_t begin, int64_t end) {
    uint32_t most = 0;
    for (int64_t i = begin; i < end; ++i) {
      const uint32_t key = static_cast<uint32_t>(keys[i]);
      most = std::max(most, key);
      front[i] = static_cast<uint64_t>(key) << 32 | static_cast<uint64_t>(i);
    }
    largest[p] = most;
  });
  const uint32_t most = *std::max_element(largest.begin(), largest.end());
  TORCH_CHECK(most <= INT32_MAX, "index has a negative row number");
  std::vector<Counts> places(parts);
  for (int shift = 0; shift < 31 && (most >> shift) != 0; shift += kBits) {
    const auto bucket = [shift](uint64_t entry) { return (entry >> (32 + shift)) & (kBuckets - 1); };
    each_part([&](int64_t p, int64_t begin, int64_t end) {
      places[p].fill(0);
      for (int64_t i = begin; i < end; ++i) ++places[p][bucket(front[i])];
    });
    int32_t next = 0;
    for (int k = 0; k < kBuckets; ++k)
      for (Counts& counts : places) next += std::exchange(counts[k], next);
    each_part([&](int64_t p, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) back[places[p][bucket(front[i])]++] = front[i];
    });
    front.swap(back);
  }
  const auto opens = [&](int64_t i) { return i == 0 || front[i] >> 32 != front[i - 1] >> 32; };
  std::vector<int64_t> first(parts + 1);
  each_part([&](int64_t p, int64_t begin, int64_t end) {
    int64_t count = 0;
    for (int64_t i = begin; i < end; ++i) count += opens(i);
    first[p + 1] = count;
  });
  std::partial_sum(first.begin(), first.end(), first.begin());
  Tensor order = at::empty({n}, index.options()), begins = at::empty({first[parts]}, index.options());
  Tensor rows = at::empty({first[parts]}, index.options().dtype(at::kLong));
  int32_t *out = order.mutable_data_ptr<int32_t>(), *starts = begins.mutable_data_ptr<int32_t>();
  int64_t* row = rows.mutable_data_ptr<int64_t>();
  each_part([&](int64_t p, int64_t begin, int64_t end) {
    int64_t k = first[p];
    for (int64_t i = begin; i < end; ++i) {
      out[i] = static_cast<int32_t>(front[i]);
      if (opens(i)) {
        row[k] = static_cast<int64_t>(front[i] >> 32);
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
  at::parallel_for(0, u, grain(n / std::max<int64_t>(1, u)), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k)
      for (int64_t i = starts[k], stop = k + 1 < u ? starts[k + 1] : n; i < stop; ++i)
        to[from[i]] = static_cast<int32_t>(k);
  });
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
  at::parallel_for(0, n, grain(width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (i + kAhead < end) __builtin_prefetch(from + static_cast<int64_t>(rows[i + kAhead]) * width);
      std::memcpy(to + i * width, from + row_at(rows, i, height) * width, width * sizeof(float));
    }
  });
  return result;
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

// ---------------------------------------------------------------------------------------------------------------
// Optimisers of touched rows

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
      if (k + kAheadRows < end) __builtin_prefetch(values + row[k + kAheadRows] * width, 1);
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

struct Stride {
  float keep1, keep2, half1, half2;  // what is left of the moments after it, and in its middle
};

// A row's h steps of Adam at once, with the moments of their middle.
template <bool kPushed, int64_t kWidth>
void stride(float* __restrict__ value, float* __restrict__ mean, float* __restrict__ square, const float* __restrict__ g,
            const Stride s, float scale, float root, float tiny, float pull, int64_t width) {
  const int64_t d = kWidth ? kWidth : width;
  for (int64_t j = 0; j < d; ++j) {
    const float whole = kPushed ? pull * value[j] + g[j] : pull * value[j];
    const float m = s.half1 * mean[j] + (1 - s.half1) * whole, v = s.half2 * square[j] + (1 - s.half2) * whole * whole;
    mean[j] = s.keep1 * mean[j] + (1 - s.keep1) * whole;
    square[j] = s.keep2 * square[j] + (1 - s.keep2) * whole * whole;
    value[j] -= scale * m / (std::sqrt(v) * root + tiny);
  }
}

// Adam whose decay is part of the gradient, which therefore moves a row at every step, touched or not: rows first make up
// the steps since last int32 [V], several at a time and fewer right after a touch, then take one with their gradient if
// there is one, and are then as after `step` steps. A stride moves a value by a quarter at most.
void coupled_adam(const Tensor& table, const Tensor& first, const Tensor& second, const Tensor& last, const Tensor& rows,
                  const std::optional<Tensor>& gradient, double rate, double beta1, double beta2, double eps,
                  double decay, int64_t step) {
  check(table, at::kFloat, 2, "table");
  check(first, at::kFloat, 2, "first");
  check(second, at::kFloat, 2, "second");
  check(last, at::kInt, 1, "last");
  check(rows, at::kLong, 1, "rows");
  if (gradient) check_rows(table, rows, *gradient);
  const int64_t width = table.size(1), height = table.size(0), u = rows.numel();
  TORCH_CHECK(first.sizes() == table.sizes() && second.sizes() == table.sizes() && last.numel() == height,
              "moments of another shape");
  const int64_t longest = std::clamp<int64_t>(static_cast<int64_t>(0.25 / std::max(rate, 1e-6)), 1, 512);
  std::vector<Stride> strides(longest + 1);
  for (int64_t h = 1; h <= longest; ++h) {
    const double all = static_cast<double>(h), half = (all + 1) / 2;
    strides[h] = {static_cast<float>(std::pow(beta1, all)), static_cast<float>(std::pow(beta2, all)),
                  static_cast<float>(std::pow(beta1, half)), static_cast<float>(std::pow(beta2, half))};
  }
  // By twice the step, since middles lie between steps; the corrections are 1 long before the last one.
  const int64_t corrected = std::min<int64_t>(2 * step + 2, 1 << 15);
  std::vector<float> size(corrected), unbias(corrected);
  double left1 = 1, left2 = 1;
  for (int64_t i = 1; i < corrected; ++i) {
    left1 *= std::sqrt(beta1);
    left2 *= std::sqrt(beta2);
    size[i] = static_cast<float>(rate / (1 - left1));
    unbias[i] = static_cast<float>(1 / std::sqrt(1 - left2));
  }
  float *values = table.mutable_data_ptr<float>(), *means = first.mutable_data_ptr<float>(),
        *squares = second.mutable_data_ptr<float>();
  int32_t* taken = last.mutable_data_ptr<int32_t>();
  const int64_t* row = rows.const_data_ptr<int64_t>();
  const float* from = gradient ? gradient->const_data_ptr<float>() : nullptr;
  const float tiny = static_cast<float>(eps), pull = static_cast<float>(decay);
  const auto free = width == 16 ? stride<false, 16> : stride<false, 0>;
  const auto pushed = width == 16 ? stride<true, 16> : stride<true, 0>;
  at::parallel_for(0, u, grain(8 * width), [&](int64_t begin, int64_t end) {
    // Where the last row that had never moved began, and what became of it: the next one that begins there ends there.
    std::vector<float> start, moved;
    for (int64_t k = begin; k < end; ++k) {
      if (k + kAheadRows < end) {
        const int64_t ahead = row[k + kAheadRows] * width;
        __builtin_prefetch(values + ahead, 1);
        __builtin_prefetch(means + ahead, 1);
        __builtin_prefetch(squares + ahead, 1);
        __builtin_prefetch(taken + row[k + kAheadRows], 1);
      }
      const int64_t r = row_at(row, k, height), place = r * width;
      const auto move = [&](const auto& by, int64_t at, int64_t h, const float* g) {
        const int64_t middle = std::min(2 * at + h + 1, corrected - 1);
        by(values + place, means + place, squares + place, g, strides[h], static_cast<float>(h) * size[middle],
           unbias[middle], tiny, pull, width);
      };
      int64_t at = taken[r];
      const int64_t stop = from ? step - 1 : step;
      const bool fresh = at == 0 && at < stop;
      if (fresh && !start.empty() && std::equal(start.begin(), start.end(), values + place)) {
        std::copy_n(moved.data(), width, values + place);
        std::copy_n(moved.data() + width, width, means + place);
        std::copy_n(moved.data() + 2 * width, width, squares + place);
        at = stop;
      } else if (fresh) {
        start.assign(values + place, values + place + width);
      }
      const bool keep = fresh && at < stop;
      for (int64_t done = 0; at < stop;) {
        const int64_t h = std::min({stop - at, longest, 1 + 2 * done});
        move(free, at, h, nullptr);
        at += h;
        done += h;
      }
      if (keep) {
        moved.assign(values + place, values + place + width);
        moved.insert(moved.end(), means + place, means + place + width);
        moved.insert(moved.end(), squares + place, squares + place + width);
      }
      if (from) move(pushed, at, 1, from + k * width);
      taken[r] = static_cast<int32_t>(step);
    }
  });
}

// 1 / (1 + exp(-x)) within 2 units of the last place, 0 below -80, in operations that compilers do side by side: no branch.
float logistic(float x) {
  constexpr float kRound = 12582912.0f;  // above it a float has no fraction
  const float power = std::min(std::max(x, -80.0f), 80.0f) * -1.44269504f;
  const float whole = (power + kRound) - kRound, f = power - whole;
  const float fraction = 1.0f + f * (0.693147181f + f * (0.240226507f + f * (0.0555041087f + f * (
      0.00961812911f + f * (0.00133335581f + f * 0.000154035304f)))));
  const float y = 1.0f / (1.0f + fraction * std::bit_cast<float>((static_cast<int32_t>(whole) + 127) << 23));
  return y * static_cast<float>(x >= -80.0f);
}

// A row x [D] drawn towards zero by level = sigmoid(s), one of all values or one of each.
template <int64_t kWidth, bool kOne>
void draw_in(const float* __restrict__ x, const float* __restrict__ s, float* __restrict__ level, float* __restrict__ out,
             int64_t width) {
  const int64_t d = kWidth ? kWidth : width;
  for (int64_t j = 0; j < (kOne ? 1 : d); ++j) level[j] = logistic(s[j]);
  for (int64_t j = 0; j < d; ++j) {
    const float limit = level[kOne ? 0 : j];
    out[j] = x[j] - std::min(std::max(x[j], -limit), limit);
  }
}

// The gradient of such a row, where y is what it was drawn to: of x, and of s by value.
template <int64_t kWidth, bool kOne>
void push_back(const float* __restrict__ g, const float* __restrict__ y, const float* __restrict__ level,
               float* __restrict__ of_x, float* __restrict__ of_s, int64_t width) {
  const int64_t d = kWidth ? kWidth : width;
  for (int64_t j = 0; j < d; ++j) {
    const float limit = level[kOne ? 0 : j], kept = y[j] != 0.0f ? g[j] : 0.0f;
    of_x[j] = kept;
    of_s[j] = (y[j] > 0.0f ? -kept : kept) * (limit * (1.0f - limit));
  }
}

// Soft thresholds: rows int64 [U] of table [V, D] drawn towards zero by level = sigmoid(thresholds), and not beyond it.
// thresholds are [V, D] or [V, 1], looked up by row. -> the rows [U, D], and their level.
std::tuple<Tensor, Tensor> soften(const Tensor& table, const Tensor& thresholds, const Tensor& rows) {
  check(table, at::kFloat, 2, "table");
  check(thresholds, at::kFloat, 2, "thresholds");
  check(rows, at::kLong, 1, "rows");
  const int64_t u = rows.numel(), d = table.size(1), height = table.size(0), w = thresholds.size(1);
  TORCH_CHECK(thresholds.size(0) == height && (w == d || w == 1), "shapes do not fit");
  const float *from = table.const_data_ptr<float>(), *by = thresholds.const_data_ptr<float>();
  const int64_t* row = rows.const_data_ptr<int64_t>();
  Tensor result = at::empty({u, d}, table.options()), level = at::empty({u, w}, table.options());
  float *to = result.mutable_data_ptr<float>(), *levels = level.mutable_data_ptr<float>();
  const auto draw = w == 1 ? draw_in<0, true> : d == 16 ? draw_in<16, false> : draw_in<0, false>;
  at::parallel_for(0, u, grain(2 * d), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      if (k + kAheadRows < end) {
        __builtin_prefetch(from + row[k + kAheadRows] * d);
        __builtin_prefetch(by + row[k + kAheadRows] * w);
      }
      const int64_t r = row_at(row, k, height);
      draw(from + r * d, by + r * w, levels + k * w, to + k * d, d);
    }
  });
  return {result, level};
}

// Its gradients, [U, D] each, where level = sigmoid(s): of the rows, and of s by value.
std::tuple<Tensor, Tensor> soften_backward(const Tensor& gradient, const Tensor& output, const Tensor& level) {
  check(gradient, at::kFloat, 2, "gradient");
  check(output, at::kFloat, 2, "output");
  check(level, at::kFloat, 2, "level");
  const int64_t u = output.size(0), d = output.size(1), w = level.size(1);
  TORCH_CHECK(gradient.sizes() == output.sizes() && level.size(0) == u && (w == d || w == 1), "shapes do not fit");
  Tensor of_rows = at::empty({u, d}, output.options()), of_level = at::empty({u, d}, output.options());
  const float *g = gradient.const_data_ptr<float>(), *y = output.const_data_ptr<float>(), *t = level.const_data_ptr<float>();
  float *pull = of_rows.mutable_data_ptr<float>(), *push = of_level.mutable_data_ptr<float>();
  const auto push_row = w == 1 ? push_back<0, true> : d == 16 ? push_back<16, false> : push_back<0, false>;
  at::parallel_for(0, u, grain(2 * d), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) push_row(g + k * d, y + k * d, t + k * w, pull + k * d, push + k * d, d);
  });
  return {of_rows, of_level};
}

// Candidates [U, N * D] squashed by tanh and mixed by weights [U, N] -> [U, D], and the squashed ones.
std::tuple<Tensor, Tensor> squash(const Tensor& candidates, const Tensor& weights) {
  check(candidates, at::kFloat, 2, "candidates");
  check(weights, at::kFloat, 2, "weights");
  const int64_t u = candidates.size(0), n = weights.size(1), d = candidates.size(1) / std::max<int64_t>(n, 1);
  TORCH_CHECK(weights.size(0) == u && n * d == candidates.size(1), "shapes do not fit");
  Tensor mixed = at::empty({u, d}, candidates.options()), squashed = at::empty(candidates.sizes(), candidates.options());
  const float *from = candidates.const_data_ptr<float>(), *by = weights.const_data_ptr<float>();
  float *to = mixed.mutable_data_ptr<float>(), *kept = squashed.mutable_data_ptr<float>();
  at::parallel_for(0, u, grain(4 * n * d), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const float* __restrict__ x = from + k * n * d;
      float* __restrict__ y = kept + k * n * d;
      float* __restrict__ out = to + k * d;
      for (int64_t j = 0; j < n * d; ++j) y[j] = 2.0f * logistic(2.0f * x[j]) - 1.0f;
      for (int64_t j = 0; j < d; ++j) out[j] = by[k * n] * y[j];
      for (int64_t c = 1; c < n; ++c)
        for (int64_t j = 0; j < d; ++j) out[j] += by[k * n + c] * y[c * d + j];
    }
  });
  return {mixed, squashed};
}

// Its gradients: of the candidates, and of the weights.
std::tuple<Tensor, Tensor> squash_backward(const Tensor& gradient, const Tensor& squashed, const Tensor& weights) {
  check(gradient, at::kFloat, 2, "gradient");
  check(squashed, at::kFloat, 2, "squashed");
  check(weights, at::kFloat, 2, "weights");
  const int64_t u = squashed.size(0), n = weights.size(1), d = gradient.size(1);
  TORCH_CHECK(gradient.size(0) == u && weights.size(0) == u && squashed.size(1) == n * d, "shapes do not fit");
  Tensor of_candidates = at::empty(squashed.sizes(), squashed.options()),
         of_weights = at::empty(weights.sizes(), weights.options());
  const float *g = gradient.const_data_ptr<float>(), *y = squashed.const_data_ptr<float>(),
              *by = weights.const_data_ptr<float>();
  float *pull = of_candidates.mutable_data_ptr<float>(), *push = of_weights.mutable_data_ptr<float>();
  at::parallel_for(0, u, grain(3 * n * d), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k)
      for (int64_t c = 0; c < n; ++c) {
        const float* __restrict__ t = y + (k * n + c) * d;
        const float* __restrict__ h = g + k * d;
        float* __restrict__ out = pull + (k * n + c) * d;
        const float weight = by[k * n + c];
        float sum = 0.0f;
        for (int64_t j = 0; j < d; ++j) {
          sum += h[j] * t[j];
          out[j] = weight * h[j] * (1.0f - t[j] * t[j]);
        }
        push[k * n + c] = sum;
      }
  });
  return {of_candidates, of_weights};
}

// ---------------------------------------------------------------------------------------------------------------
// Rows of a table by id space: cuts int64 [S + 1] says where each space's begin among the U rows, begins int32 [U] and
// n look-ups how often each counts.

struct Chunk {
  int64_t space, begin, end;
};

// Pieces of a space's rows that one thread sums up: the same ones whatever the number of threads.
std::vector<Chunk> chunks(const Tensor& cuts) {
  constexpr int64_t kRows = 512;
  check(cuts, at::kLong, 1, "cuts");
  const int64_t* cut = cuts.const_data_ptr<int64_t>();
  std::vector<Chunk> found;
  for (int64_t s = 0; s + 1 < cuts.numel(); ++s)
    for (int64_t begin = cut[s]; begin < cut[s + 1]; begin += kRows)
      found.push_back({s, begin, std::min(begin + kRows, cut[s + 1])});
  return found;
}

// add(chunk, sums [width]) for every chunk -> its sums by space, added to result [S, width].
template <typename Add>
void sums_by_space(const std::vector<Chunk>& parts, int64_t width, double* result, const Add& add) {
  std::vector<double> partial(parts.size() * width);
  at::parallel_for(0, static_cast<int64_t>(parts.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) add(parts[p], partial.data() + p * width);
  });
  for (size_t p = 0; p < parts.size(); ++p)
    for (int64_t j = 0; j < width; ++j) result[parts[p].space * width + j] += partial[p * width + j];
}

// x [U, D] normalised by space and column, a row counted as often as it is looked up, times scale [S, D]: the result
// [U, D], mean and biased variance [S, D], and the look-ups of each space [S].
std::tuple<Tensor, Tensor, Tensor, Tensor> row_norm(const Tensor& x, const Tensor& begins, int64_t n, const Tensor& cuts,
                                                    const Tensor& scale, double eps) {
  check(x, at::kFloat, 2, "x");
  check(begins, at::kInt, 1, "begins");
  check(scale, at::kFloat, 2, "scale");
  const int64_t u = x.size(0), d = x.size(1), spaces = scale.size(0);
  TORCH_CHECK(begins.numel() == u && cuts.numel() == spaces + 1 && scale.size(1) == d, "shapes do not fit");
  const std::vector<Chunk> parts = chunks(cuts);
  const float *from = x.const_data_ptr<float>(), *by = scale.const_data_ptr<float>();
  const int32_t* starts = begins.const_data_ptr<int32_t>();
  const auto count = [&](int64_t k) { return static_cast<float>((k + 1 < u ? starts[k + 1] : n) - starts[k]); };
  Tensor result = at::empty({u, d}, x.options()), mean = at::empty({spaces, d}, x.options());
  Tensor variance = at::empty({spaces, d}, x.options()), looked_up = at::empty({spaces}, x.options());
  float *to = result.mutable_data_ptr<float>(), *means = mean.mutable_data_ptr<float>();
  float *variances = variance.mutable_data_ptr<float>(), *counts = looked_up.mutable_data_ptr<float>();
  std::vector<double> first(spaces * (d + 1)), second(spaces * d);
  sums_by_space(parts, d + 1, first.data(), [&](const Chunk& part, double* sums) {
    std::vector<float> sum(d);
    for (int64_t k = part.begin; k < part.end; ++k) {
      const float c = count(k);
      for (int64_t j = 0; j < d; ++j) sum[j] += c * from[k * d + j];
      sums[d] += c;
    }
    std::copy(sum.begin(), sum.end(), sums);
  });
  for (int64_t s = 0; s < spaces; ++s) {
    counts[s] = static_cast<float>(std::max(1.0, first[s * (d + 1) + d]));
    for (int64_t j = 0; j < d; ++j) means[s * d + j] = static_cast<float>(first[s * (d + 1) + j] / counts[s]);
  }
  sums_by_space(parts, d, second.data(), [&](const Chunk& part, double* sums) {
    const float* centre = means + part.space * d;
    std::vector<float> sum(d);
    for (int64_t k = part.begin; k < part.end; ++k) {
      const float c = count(k);
      for (int64_t j = 0; j < d; ++j) {
        const float away = from[k * d + j] - centre[j];
        sum[j] += c * away * away;
      }
    }
    std::copy(sum.begin(), sum.end(), sums);
  });
  std::vector<float> factor(spaces * d);
  for (int64_t i = 0; i < spaces * d; ++i) {
    variances[i] = static_cast<float>(second[i] / counts[i / d]);
    factor[i] = by[i] / std::sqrt(variances[i] + static_cast<float>(eps));
  }
  at::parallel_for(0, static_cast<int64_t>(parts.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const float *centre = means + parts[p].space * d, *times = factor.data() + parts[p].space * d;
      for (int64_t k = parts[p].begin; k < parts[p].end; ++k)
        for (int64_t j = 0; j < d; ++j) to[k * d + j] = (from[k * d + j] - centre[j]) * times[j];
    }
  });
  return {result, mean, variance, looked_up};
}

// Its gradients: of x [U, D], and of scale [S, D].
std::tuple<Tensor, Tensor> row_norm_backward(const Tensor& gradient, const Tensor& x, const Tensor& begins, int64_t n,
                                             const Tensor& cuts, const Tensor& scale, const Tensor& mean,
                                             const Tensor& variance, const Tensor& looked_up, double eps) {
  check(gradient, at::kFloat, 2, "gradient");
  check(x, at::kFloat, 2, "x");
  check(begins, at::kInt, 1, "begins");
  const int64_t u = x.size(0), d = x.size(1), spaces = scale.size(0);
  TORCH_CHECK(gradient.sizes() == x.sizes() && begins.numel() == u && cuts.numel() == spaces + 1, "shapes do not fit");
  const std::vector<Chunk> parts = chunks(cuts);
  const float *g = gradient.const_data_ptr<float>(), *from = x.const_data_ptr<float>();
  const float *by = scale.const_data_ptr<float>(), *means = mean.const_data_ptr<float>();
  const float *variances = variance.const_data_ptr<float>(), *counts = looked_up.const_data_ptr<float>();
  const int32_t* starts = begins.const_data_ptr<int32_t>();
  std::vector<float> root(spaces * d);
  for (int64_t i = 0; i < spaces * d; ++i) root[i] = 1.0f / std::sqrt(variances[i] + static_cast<float>(eps));
  std::vector<double> sums(spaces * 2 * d);  // of the gradient, and of the gradient times the normalised value
  sums_by_space(parts, 2 * d, sums.data(), [&](const Chunk& part, double* total) {
    const float *centre = means + part.space * d, *r = root.data() + part.space * d;
    std::vector<float> sum(2 * d);
    float* __restrict__ plain = sum.data();
    float* __restrict__ times = plain + d;
    for (int64_t k = part.begin; k < part.end; ++k)
      for (int64_t j = 0; j < d; ++j) {
        const float value = g[k * d + j];
        plain[j] += value;
        times[j] += value * (from[k * d + j] - centre[j]) * r[j];
      }
    std::copy(sum.begin(), sum.end(), total);
  });
  Tensor of_x = at::empty({u, d}, x.options()), of_scale = at::empty({spaces, d}, x.options());
  float *to = of_x.mutable_data_ptr<float>(), *to_scale = of_scale.mutable_data_ptr<float>();
  for (int64_t s = 0; s < spaces; ++s)
    for (int64_t j = 0; j < d; ++j) to_scale[s * d + j] = static_cast<float>(sums[s * 2 * d + d + j]);
  at::parallel_for(0, static_cast<int64_t>(parts.size()), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> room(3 * d);
    float *factor = room.data(), *pull = factor + d, *turn = pull + d;
    for (int64_t p = begin; p < end; ++p) {
      const int64_t s = parts[p].space;
      const float *centre = means + s * d, *r = root.data() + s * d;
      for (int64_t j = 0; j < d; ++j) {
        factor[j] = by[s * d + j] * r[j];
        pull[j] = factor[j] * static_cast<float>(sums[s * 2 * d + j] / counts[s]);
        turn[j] = factor[j] * r[j] * static_cast<float>(sums[s * 2 * d + d + j] / counts[s]);
      }
      for (int64_t k = parts[p].begin; k < parts[p].end; ++k) {
        const float c = static_cast<float>((k + 1 < u ? starts[k + 1] : n) - starts[k]);
        for (int64_t j = 0; j < d; ++j)
          to[k * d + j] = factor[j] * g[k * d + j] - c * (pull[j] + turn[j] * (from[k * d + j] - centre[j]));
      }
    }
  });
  return {of_x, of_scale};
}

// ---------------------------------------------------------------------------------------------------------------
// Layers

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
// in float32 are the first columns of flat.
std::tuple<Tensor, Tensor, Tensor, Tensor> gather_flat(const Tensor& table, const Tensor& index, const Tensor& numeric,
                                                       int64_t width, bool pairs, bool bf16) {
  check(table, at::kFloat, 2, "table");
  check(index, at::kInt, 1, "index");
  const int64_t b = numeric.size(0), d = table.size(1), height = table.size(0), f = b ? index.numel() / b : 0;
  TORCH_CHECK(f * b == index.numel(), index.numel(), " look-ups are not ", b, " rows");
  const int32_t* rows = index.const_data_ptr<int32_t>();
  const float* from = table.const_data_ptr<float>();
  Tensor fields = at::empty({bf16 ? b : 0, f, d}, table.options());
  float* apart = fields.mutable_data_ptr<float>();
  auto [flat, products, sums] = laid_out(b, f, d, numeric, width, pairs, bf16, [&](const auto& layout) {
    at::parallel_for(0, b, grain(width), [&](int64_t begin, int64_t end) {
      std::vector<float> square(d);
      for (int64_t i = begin; i < end; ++i) {
        float* to = apart + i * f * d;
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

template <typename T, int64_t kWidth>
void gather_flat_rows(const T* flat, const float* of_fields, const float* of_pairs, const float* fields,
                      const float* sums, const int32_t* order, const int32_t* starts, float* result, int64_t n,
                      int64_t u, int64_t f, int64_t w, int64_t gap, int64_t width) {
  const int64_t d = kWidth ? kWidth : width;
  // The row of a look-up: a product is quicker than a division, and half a look-up away from where it could round wrong.
  const double share = 1.0 / static_cast<double>(f);
  const auto row_of = [=](int32_t i) { return static_cast<int64_t>((i + 0.5) * share); };
  const int64_t skip = w - f * d;  // columns of flat behind the fields
  at::parallel_for(0, n, grain(d), [&](int64_t begin, int64_t end) {
    const auto row_from = [&](int64_t i) { return std::lower_bound(starts, starts + u, i) - starts; };
    std::array<float, kWidth ? kWidth : 1> fixed;
    std::vector<float> room(kWidth ? 0 : d);
    float* sum = kWidth ? fixed.data() : room.data();
    const auto in_flat = [&](int32_t i, int64_t row) { return flat + i * d + row * skip; };
    for (int64_t k = row_from(begin), last = row_from(end); k < last; ++k) {
      // All look-ups of a table's row have the same values: the first one stands for the row.
      const auto values = [&](int64_t r) {
        const int32_t first = order[starts[r]];
        return fields + first * d + row_of(first) * gap;
      };
      if (of_pairs && k + kAheadRows < u) __builtin_prefetch(values(k + kAheadRows));
      std::fill(sum, sum + d, 0.0f);
      float pull = 0.0f;
      for (int64_t i = starts[k], stop = k + 1 < u ? starts[k + 1] : n; i < stop; ++i) {
        const int64_t row = row_of(order[i]);
        if (flat) {
          if (i + kAheadRows < n) {
            const int32_t ahead = order[i + kAheadRows];
            __builtin_prefetch(in_flat(ahead, row_of(ahead)));
          }
          const T* g = in_flat(order[i], row);
          for (int64_t j = 0; j < d; ++j) sum[j] += static_cast<float>(g[j]);
        }
        if (of_fields) {
          const float* g = of_fields + static_cast<int64_t>(order[i]) * d;
          for (int64_t j = 0; j < d; ++j) sum[j] += g[j];
        }
        if (of_pairs) {
          pull += of_pairs[row];
          for (int64_t j = 0; j < d; ++j) sum[j] += of_pairs[row] * sums[row * d + j];
        }
      }
      if (of_pairs) {
        const float* x = values(k);
        for (int64_t j = 0; j < d; ++j) sum[j] -= pull * x[j];
      }
      std::copy_n(sum, d, result + k * d);
    }
  });
}

// Its gradient by rows of the table, [U, D]: from the gradients of flat [B, W], of the fields [B, F, D] and of the pairs
// [B], where there are such; order [n] and begins [U] are those of group().
Tensor gather_flat_backward(const std::optional<Tensor>& flat, const std::optional<Tensor>& of_fields,
                            const std::optional<Tensor>& of_pairs, const Tensor& fields, const Tensor& sums,
                            const Tensor& order, const Tensor& begins) {
  check(order, at::kInt, 1, "order");
  check(begins, at::kInt, 1, "begins");
  const int64_t b = fields.size(0), f = fields.size(1), d = fields.size(2), n = order.numel(), u = begins.numel();
  TORCH_CHECK(fields.scalar_type() == at::kFloat && fields.dim() == 3 && fields.stride(2) == 1 && fields.stride(1) == d,
              "the fields of a row have to lie side by side, in float32");
  TORCH_CHECK(n == b * f, n, " look-ups of ", b, " rows of ", f, " fields");
  const float *g_fields = nullptr, *g_pairs = nullptr;
  if (of_fields) {
    check(*of_fields, at::kFloat, 3, "the gradient of the fields");
    TORCH_CHECK(of_fields->sizes() == fields.sizes(), "shapes do not fit");
    g_fields = of_fields->const_data_ptr<float>();
  }
  if (of_pairs) {
    check(*of_pairs, at::kFloat, 1, "the gradient of the pairs");
    check(sums, at::kFloat, 2, "sums");
    TORCH_CHECK(of_pairs->numel() == b && sums.size(0) == b && sums.size(1) == d, "shapes do not fit");
    g_pairs = of_pairs->const_data_ptr<float>();
  }
  if (flat) {
    check(*flat, flat->scalar_type(), 2, "the gradient of flat");
    TORCH_CHECK(flat->size(0) == b && flat->size(1) >= f * d, "shapes do not fit");
  }
  Tensor result = at::empty({u, d}, fields.options());
  const auto add_up = [&](auto* g, int64_t w) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(g)>>;
    const auto work = d == 16 ? gather_flat_rows<T, 16> : gather_flat_rows<T, 0>;
    work(g, g_fields, g_pairs, fields.const_data_ptr<float>(), g_pairs ? sums.const_data_ptr<float>() : nullptr,
         order.const_data_ptr<int32_t>(), begins.const_data_ptr<int32_t>(), result.mutable_data_ptr<float>(), n, u, f, w,
         fields.stride(0) - f * d, d);
  };
  if (!flat)
    add_up(static_cast<const float*>(nullptr), 0);
  else if (flat->scalar_type() == at::kBFloat16)
    add_up(flat->const_data_ptr<BFloat16>(), flat->size(1));
  else
    add_up(flat->const_data_ptr<float>(), flat->size(1));
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

// sums[w] = the sum over b rows of what add(row, sum) adds. The parts that are added up are as many on any machine.
template <typename Add>
void sum_over_parts(int64_t b, int64_t w, float* sums, const Add& add) {
  const int64_t parts = std::clamp<int64_t>(b * w / (4 * kGrain), 1, 16);
  std::vector<float> partial(parts * w);
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      for (int64_t i = b * p / parts; i < b * (p + 1) / parts; ++i) add(i, partial.data() + p * w);
  });
  std::fill(sums, sums + w, 0.0f);
  for (int64_t p = 0; p < parts; ++p)
    for (int64_t j = 0; j < w; ++j) sums[j] += partial[p * w + j];
}

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

// ---------------------------------------------------------------------------------------------------------------
// Interactions

constexpr int64_t kLanes = 16;  // rows that are computed at once
using Lanes = float __attribute__((vector_size(kLanes * sizeof(float))));

Lanes all(float value) { return value - Lanes{}; }

int64_t whole(int64_t n, int64_t part) { return (n + part - 1) / part * part; }

template <int64_t kStep, size_t... i>
void swap_halves(Lanes& a, Lanes& b, std::index_sequence<i...>) {
  const Lanes low = __builtin_shufflevector(a, b, ((i & kStep) ? kLanes + i - kStep : i)...);
  b = __builtin_shufflevector(a, b, ((i & kStep) ? kLanes + i : i + kStep)...);
  a = low;
}

// Rows become columns, a bit of the row number after the other changing places with one of the column number.
template <int64_t kStep = kLanes / 2>
void transpose(std::array<Lanes, kLanes>& square) {
  for (int64_t i = 0; i < kLanes; ++i)
    if ((i & kStep) == 0) swap_halves<kStep>(square[i], square[i + kStep], std::make_index_sequence<kLanes>());
  if constexpr (kStep > 1) transpose<kStep / 2>(square);
}

// The values of up to kLanes rows, one value of all rows after the other; rows that are not there are zero.
struct Tile {
  std::vector<Lanes> values;
  int64_t width;

  explicit Tile(int64_t width_) : values(whole(width_, kLanes)), width(width_) {}

  // count rows, which begin `stride` apart.
  void load(const float* rows, int64_t stride, int64_t count) {
    each_square([&](std::array<Lanes, kLanes>& square, int64_t c, int64_t bytes) {
      square = {};
      for (int64_t r = 0; r < count; ++r) std::memcpy(&square[r], rows + r * stride + c, bytes);
      transpose(square);
      std::copy_n(square.begin(), kLanes, &values[c]);
    });
  }

  void store(float* rows, int64_t stride, int64_t count) const {
    each_square([&](std::array<Lanes, kLanes>& square, int64_t c, int64_t bytes) {
      std::copy_n(&values[c], kLanes, square.begin());
      transpose(square);
      for (int64_t r = 0; r < count; ++r) std::memcpy(rows + r * stride + c, &square[r], bytes);
    });
  }

 private:
  // Of kLanes columns from c on, as far as there are such.
  template <typename Move>
  void each_square(const Move& move) const {
    std::array<Lanes, kLanes> square;
    for (int64_t c = 0; c < width; c += kLanes) move(square, c, std::min(kLanes, width - c) * sizeof(float));
  }
};

// M combinations of p fields each, and weights [M, D] or [M, 1] of their products, if there are any. Neighbours of which
// all fields but the last are the same are a run: what the other fields make together is computed once for it.
struct Combinations {
  struct Run {
    int64_t begin, end;
  };

  const int64_t* slots;  // [p, M]
  const float* weights = nullptr;
  int64_t p, m, f, d, weighted = 0;  // weights per combination
  std::vector<Run> runs;

  Combinations(const Tensor& fields, const std::optional<Tensor>& weights_, const Tensor& slots_)
      : p(slots_.size(0)), m(slots_.size(1)), f(fields.size(1)), d(fields.size(2)) {
    check(fields, at::kFloat, 3, "fields");
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
      bool same = k > 0;
      for (int64_t s = 0; same && s + 1 < p; ++s) same = field(s, k) == field(s, k - 1);
      if (same)
        runs.back().end = k + 1;
      else
        runs.push_back({k, k + 1});
    }
  }

  // The field in place s of combination k.
  int64_t field(int64_t s, int64_t k) const { return slots[s * m + k]; }

  // What all fields but the last of combination k make together, w values of each of which x has one after the other.
  const Lanes* shared(const Lanes* x, int64_t k, int64_t w, Lanes* room) const {
    if (p == 2) return x + field(0, k) * w;
    for (int64_t j = 0; j < w; ++j) {
      room[j] = x[field(0, k) * w + j];
      for (int64_t s = 1; s + 1 < p; ++s) room[j] *= x[field(s, k) * w + j];
    }
    return room;
  }
};

// Of a tile x: the sum of every combination, to sums [M]; room is for D values.
template <int64_t kWidth>
void sum_tile(const Combinations& of, const Lanes* x, Lanes* room, Lanes* sums) {
  const int64_t d = kWidth ? kWidth : of.d;
  const int64_t* last = of.slots + (of.p - 1) * of.m;
  for (const Combinations::Run& run : of.runs) {
    const Lanes* head = of.shared(x, run.begin, d, room);
    for (int64_t k = run.begin; k < run.end; ++k) {
      const Lanes* tail = x + last[k] * d;
      const float* weight = of.weights + k * of.weighted;
      Lanes sum{};
      if (of.weighted > 1)
        for (int64_t j = 0; j < d; ++j) sum += head[j] * tail[j] * weight[j];
      else
        for (int64_t j = 0; j < d; ++j) sum += head[j] * tail[j];
      sums[k] = of.weighted == 1 ? sum * weight[0] : sum;
    }
  }
}

// fields [B, F, D], perhaps weights [M, D] or [M, 1], and slots int64 [p, M], the p different fields of every combination:
// the sum over d of weights[m, d] times the product over s of fields[b, slots[s, m], d], into M columns of result [B, N]
// from `column` on. kLanes rows at a time, side by side.
void products(const Tensor& fields, const std::optional<Tensor>& weights, const Tensor& slots, const Tensor& result,
              int64_t column) {
  const Combinations of(fields, weights, slots);
  check(result, at::kFloat, 2, "result");
  const int64_t b = fields.size(0), m = of.m, d = of.d, stride = result.size(1), tiles = (b + kLanes - 1) / kLanes;
  TORCH_CHECK(result.size(0) == b && column >= 0 && column + m <= stride, "shapes do not fit");
  const float* from = fields.const_data_ptr<float>();
  float* out = result.mutable_data_ptr<float>() + column;
  const auto work = d == 16 ? sum_tile<16> : sum_tile<0>;
  at::parallel_for(0, tiles, grain(kLanes * m * d), [&](int64_t begin, int64_t end) {
    Tile x(of.f * d), sums(m);
    std::vector<Lanes> room(d);
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = t * kLanes, count = std::min(kLanes, b - first);
      x.load(from + first * x.width, x.width, count);
      work(of, x.values.data(), room.data(), sums.values.data());
      sums.store(out + first * stride, stride, count);
    }
  });
}

// Vectors [N, D] in whole registers, filled up with zeros.
struct Padded {
  int64_t n, d, blocks;
  std::vector<Lanes> values;

  Padded(int64_t n_, int64_t d_) : n(n_), d(d_), blocks(whole(d_, kLanes) / kLanes), values(n_ * blocks) {}
  float* row(int64_t i) { return reinterpret_cast<float*>(&values[i * blocks]); }
  void load(const float* vectors) {
    for (int64_t i = 0; i < n; ++i) std::copy_n(vectors + i * d, d, row(i));
  }
  void store(float* vectors) {
    for (int64_t i = 0; i < n; ++i) std::copy_n(row(i), d, vectors + i * d);
  }
};

// The gradient y of x, vectors of w registers, from that of their combinations: g(k), a register. Of weighted ones, also
// what their weights get, added to sums [M, w]. room is for 2 * w.
template <int64_t kWidth, bool kWeighted, typename Gradient>
void pull(const Combinations& of, int64_t w, const Lanes* x, const Lanes* weights, Lanes* room, Lanes* __restrict__ y,
          Lanes* __restrict__ sums, const Gradient& g) {
  if (kWidth) w = kWidth;
  const int64_t* last = of.slots + (of.p - 1) * of.m;
  std::fill(y, y + of.f * w, Lanes{});
  for (const Combinations::Run& run : of.runs) {
    const Lanes* head = of.shared(x, run.begin, w, room + w);
    for (int64_t j = 0; j < w; ++j) {
      const Lanes h = head[j];
      std::array<Lanes, 4> pulled{};  // sums that need not wait for each other
      const auto add = [&](int64_t k, Lanes& sum) {
        const int64_t place = last[k] * w + j;
        Lanes scale = g(k);
        if (kWeighted) {
          sums[k * w + j] += scale * h * x[place];
          scale *= weights[k * w + j];
        }
        sum += scale * x[place];
        y[place] += scale * h;
      };
      int64_t k = run.begin;
      for (; k + 4 <= run.end; k += 4)
        for (int64_t i = 0; i < 4; ++i) add(k + i, pulled[i]);
      for (; k < run.end; ++k) add(k, pulled[0]);
      room[j] = (pulled[0] + pulled[1]) + (pulled[2] + pulled[3]);
    }
    for (int64_t s = 0; s + 1 < of.p; ++s)
      for (int64_t j = 0; j < w; ++j) {
        Lanes others = room[j];
        for (int64_t o = 0; o + 1 < of.p; ++o)
          if (o != s) others *= x[of.field(o, run.begin) * w + j];
        y[of.field(s, run.begin) * w + j] += others;
      }
  }
}

// products_backward() of short vectors without weights: kLanes rows at a time, side by side.
void pull_tiles(const Combinations& of, const float* g, int64_t stride, const float* fields, float* result, int64_t b) {
  const int64_t tiles = (b + kLanes - 1) / kLanes, width = of.f * of.d;
  at::parallel_for(0, tiles, grain(kLanes * of.m * of.d), [&](int64_t begin, int64_t end) {
    Tile x(width), y(width), gradient(of.m);
    std::vector<Lanes> room(2 * of.d);
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = t * kLanes, count = std::min(kLanes, b - first);
      x.load(fields + first * width, width, count);
      gradient.load(g + first * stride, stride, count);
      pull<0, false>(of, of.d, x.values.data(), nullptr, room.data(), y.values.data(), nullptr,
                     [&](int64_t k) { return gradient.values[k]; });
      y.store(result + first * width, width, count);
    }
  });
}

// products_backward() row after row, a vector's values side by side. A weight's gradient is summed over parts of the rows,
// which are as many on any machine.
template <int64_t kWidth, bool kWeighted>
Padded pull_rows(const Combinations& of, const float* g, int64_t stride, const float* fields, float* result, int64_t b) {
  const int64_t width = of.f * of.d, parts = std::clamp<int64_t>(b * of.m * of.d / (64 * kGrain), 1, 16);
  Padded weights(kWeighted ? of.m : 0, of.d), total = weights;
  for (int64_t k = 0; k < weights.n; ++k)
    for (int64_t j = 0; j < of.d; ++j) weights.row(k)[j] = of.weights[k * of.weighted + (of.weighted > 1 ? j : 0)];
  std::vector<std::vector<Lanes>> sums(parts, total.values);
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    Padded x(of.f, of.d), y = x;
    std::vector<Lanes> room(2 * x.blocks);
    for (int64_t part = begin; part < end; ++part)
      for (int64_t i = b * part / parts; i < b * (part + 1) / parts; ++i) {
        x.load(fields + i * width);
        pull<kWidth, kWeighted>(of, x.blocks, x.values.data(), weights.values.data(), room.data(), y.values.data(),
                                sums[part].data(), [row = g + i * stride](int64_t k) { return all(row[k]); });
        y.store(result + i * width);
      }
  });
  for (const std::vector<Lanes>& of_part : sums)
    for (size_t i = 0; i < of_part.size(); ++i) total.values[i] += of_part[i];
  return total;
}

// gradient [B, N] of the result, and the other arguments of products() -> the gradients of fields, and of weights or
// nothing.
std::tuple<Tensor, Tensor> products_backward(const Tensor& gradient, int64_t column, const Tensor& fields,
                                             const std::optional<Tensor>& weights, const Tensor& slots) {
  const Combinations of(fields, weights, slots);
  check(gradient, at::kFloat, 2, "gradient");
  const int64_t b = fields.size(0), stride = gradient.size(1);
  TORCH_CHECK(gradient.size(0) == b && column >= 0 && column + of.m <= stride, "shapes do not fit");
  Tensor of_fields = at::empty_like(fields), of_weights = at::zeros({of.weighted ? of.m : 0, of.weighted}, fields.options());
  const float *from = fields.const_data_ptr<float>(), *g = gradient.const_data_ptr<float>() + column;
  float *to = of_fields.mutable_data_ptr<float>(), *sums = of_weights.mutable_data_ptr<float>();
  if (!of.weighted && 2 * of.d <= kLanes) {
    pull_tiles(of, g, stride, from, to, b);
    return {of_fields, of_weights};
  }
  const bool one = of.d <= kLanes;
  const auto work = of.weighted ? (one ? pull_rows<1, true> : pull_rows<0, true>)
                                : (one ? pull_rows<1, false> : pull_rows<0, false>);
  Padded total = work(of, g, stride, from, to, b);
  for (int64_t k = 0; k < total.n; ++k)
    for (int64_t j = 0; j < of.d; ++j) sums[k * of.weighted + (of.weighted > 1 ? j : 0)] += total.row(k)[j];
  return {of_fields, of_weights};
}

// x [B, M], gates [M] and eps [M] -> [B], each column normalised over the rows and times its gate, summed; and the
// columns' means and variances [M].
std::tuple<Tensor, Tensor, Tensor> gated_norm(const Tensor& x, const Tensor& gates, const Tensor& eps) {
  check(x, at::kFloat, 2, "x");
  check(gates, at::kFloat, 1, "gates");
  check(eps, at::kFloat, 1, "eps");
  const int64_t b = x.size(0), m = x.size(1);
  TORCH_CHECK(gates.numel() == m && eps.numel() == m, "shapes do not fit");
  Tensor result = at::empty({b}, x.options()), means = at::empty({m}, x.options()), variances = at::empty({m}, x.options());
  const float *from = x.const_data_ptr<float>(), *gate = gates.const_data_ptr<float>(), *e = eps.const_data_ptr<float>();
  float *mean = means.mutable_data_ptr<float>(), *variance = variances.mutable_data_ptr<float>();
  sum_over_parts(b, m, mean, [&](int64_t i, float* __restrict__ sum) {
    const float* row = from + i * m;
    for (int64_t k = 0; k < m; ++k) sum[k] += row[k];
  });
  for (int64_t k = 0; k < m; ++k) mean[k] /= b;
  sum_over_parts(b, m, variance, [&](int64_t i, float* __restrict__ sum) {
    const float* row = from + i * m;
    for (int64_t k = 0; k < m; ++k) sum[k] += (row[k] - mean[k]) * (row[k] - mean[k]);
  });
  std::vector<float> weight(m);
  for (int64_t k = 0; k < m; ++k) {
    variance[k] /= b;
    weight[k] = gate[k] / std::sqrt(variance[k] + e[k]);
  }
  float* out = result.mutable_data_ptr<float>();
  at::parallel_for(0, b, grain(m), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::array<float, kLanes> sums{};
      const float* row = from + i * m;
      int64_t k = 0;
      for (; k + kLanes <= m; k += kLanes)
        for (int64_t l = 0; l < kLanes; ++l) sums[l] += (row[k + l] - mean[k + l]) * weight[k + l];
      for (; k < m; ++k) sums[0] += (row[k] - mean[k]) * weight[k];
      out[i] = std::accumulate(sums.begin(), sums.end(), 0.0f);
    }
  });
  return {result, means, variances};
}

// gradient [B] of the result, its arguments, means and variances -> the gradients of x and gates.
std::tuple<Tensor, Tensor> gated_norm_backward(const Tensor& gradient, const Tensor& x, const Tensor& gates,
                                               const Tensor& eps, const Tensor& means, const Tensor& variances) {
  check(gradient, at::kFloat, 1, "gradient");
  check(x, at::kFloat, 2, "x");
  const int64_t b = x.size(0), m = x.size(1);
  for (const Tensor& t : {gates, eps, means, variances}) TORCH_CHECK(t.numel() == m, "shapes do not fit");
  TORCH_CHECK(gradient.numel() == b, "shapes do not fit");
  Tensor of_x = at::empty_like(x), of_gates = at::empty({m}, x.options());
  const float *from = x.const_data_ptr<float>(), *g = gradient.const_data_ptr<float>(), *mean = means.const_data_ptr<float>();
  const float *gate = gates.const_data_ptr<float>(), *e = eps.const_data_ptr<float>(), *v = variances.const_data_ptr<float>();
  float *to = of_x.mutable_data_ptr<float>(), *of_gate = of_gates.mutable_data_ptr<float>();
  sum_over_parts(b, m, of_gate, [&](int64_t i, float* __restrict__ sum) {
    const float *row = from + i * m, scale = g[i];
    for (int64_t k = 0; k < m; ++k) sum[k] += scale * (row[k] - mean[k]);
  });
  double total = 0.0;
  for (int64_t i = 0; i < b; ++i) total += g[i];
  const float average = static_cast<float>(total / b);
  std::vector<float> weight(m), pull(m);
  for (int64_t k = 0; k < m; ++k) {
    const float inverse = 1.0f / std::sqrt(v[k] + e[k]);
    weight[k] = gate[k] * inverse;
    pull[k] = weight[k] * inverse * inverse * of_gate[k] / b;
    of_gate[k] *= inverse;
  }
  at::parallel_for(0, b, grain(m), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* row = from + i * m;
      float* __restrict__ out = to + i * m;
      const float scale = g[i] - average;
      for (int64_t k = 0; k < m; ++k) out[k] = weight[k] * scale - pull[k] * (row[k] - mean[k]);
    }
  });
  return {of_x, of_gates};
}

}  // namespace

TORCH_LIBRARY(ctrmodels, m) {
  m.def("group(Tensor index) -> (Tensor rows, Tensor order, Tensor begins)");
  m.def("places(Tensor order, Tensor begins) -> Tensor");
  m.def("rising(Tensor rows) -> bool");
  m.def("gather(Tensor table, Tensor index) -> Tensor");
  m.def("field_sums(Tensor table, Tensor index, int fields) -> Tensor");
  m.def("field_sums_backward(Tensor gradient, Tensor order, Tensor begins, int fields) -> Tensor");
  m.def("rowwise_adagrad(Tensor(a!) table, Tensor(b!) sums, Tensor rows, Tensor gradient, float rate, float eps) -> ()");
  m.def(
      "lazy_adam(Tensor(a!) table, Tensor(b!) first, Tensor(c!) second, Tensor rows, Tensor gradient, float rate, "
      "float beta1, float beta2, float eps, int step) -> ()");
  m.def(
      "coupled_adam(Tensor(a!) table, Tensor(b!) first, Tensor(c!) second, Tensor(d!) last, Tensor rows, Tensor? gradient, "
      "float rate, float beta1, float beta2, float eps, float decay, int step) -> ()");
  m.def(
      "row_norm(Tensor x, Tensor begins, int n, Tensor cuts, Tensor scale, float eps) -> (Tensor result, Tensor mean, "
      "Tensor variance, Tensor looked_up)");
  m.def(
      "row_norm_backward(Tensor gradient, Tensor x, Tensor begins, int n, Tensor cuts, Tensor scale, Tensor mean, "
      "Tensor variance, Tensor looked_up, float eps) -> (Tensor of_x, Tensor of_scale)");
  m.def("soften(Tensor table, Tensor thresholds, Tensor rows) -> (Tensor result, Tensor level)");
  m.def("squash(Tensor candidates, Tensor weights) -> (Tensor mixed, Tensor squashed)");
  m.def("squash_backward(Tensor gradient, Tensor squashed, Tensor weights) -> (Tensor of_candidates, Tensor of_weights)");
  m.def("soften_backward(Tensor gradient, Tensor output, Tensor level) -> (Tensor of_rows, Tensor of_level)");
  m.def("flatten(Tensor fields, Tensor numeric, int width, bool pairs, bool bf16) -> (Tensor flat, Tensor pair_sum, Tensor total)");
  m.def("flatten_backward(Tensor flat_gradient, Tensor pair_gradient, Tensor fields, Tensor total) -> Tensor");
  m.def("dot(Tensor x, Tensor weight, Tensor bias) -> Tensor");
  m.def("dot_backward(Tensor gradient, Tensor x, Tensor weight) -> (Tensor result, Tensor sums)");
  m.def(
      "gather_flat(Tensor table, Tensor index, Tensor numeric, int width, bool pairs, bool bf16) -> (Tensor fields, "
      "Tensor flat, Tensor pair_sum, Tensor total)");
  m.def(
      "gather_flat_backward(Tensor? flat, Tensor? fields_gradient, Tensor? pair_gradient, Tensor fields, Tensor total, "
      "Tensor order, Tensor begins) -> Tensor");
  m.def("dot_relu_backward(Tensor gradient, Tensor x, Tensor weight) -> (Tensor result, Tensor sums, Tensor bias)");
  m.def("relu_backward(Tensor gradient, Tensor output, Tensor(a!) result) -> Tensor sums");
  m.def("take(Tensor[] columns, Tensor index) -> Tensor[]");
  m.def("products(Tensor fields, Tensor? weights, Tensor slots, Tensor(a!) result, int column) -> ()");
  m.def(
      "products_backward(Tensor gradient, int column, Tensor fields, Tensor? weights, Tensor slots) -> (Tensor of_fields, "
      "Tensor of_weights)");
  m.def("gated_norm(Tensor x, Tensor gates, Tensor eps) -> (Tensor result, Tensor means, Tensor variances)");
  m.def(
      "gated_norm_backward(Tensor gradient, Tensor x, Tensor gates, Tensor eps, Tensor means, Tensor variances) -> "
      "(Tensor of_x, Tensor of_gates)");
}

TORCH_LIBRARY_IMPL(ctrmodels, CPU, m) {
  m.impl("group", group);
  m.impl("places", places);
  m.impl("rising", rising);
  m.impl("gather", gather);
  m.impl("field_sums", field_sums);
  m.impl("field_sums_backward", field_sums_backward);
  m.impl("rowwise_adagrad", rowwise_adagrad);
  m.impl("lazy_adam", lazy_adam);
  m.impl("coupled_adam", coupled_adam);
  m.impl("row_norm", row_norm);
  m.impl("row_norm_backward", row_norm_backward);
  m.impl("soften", soften);
  m.impl("soften_backward", soften_backward);
  m.impl("squash", squash);
  m.impl("squash_backward", squash_backward);
  m.impl("flatten", flatten);
  m.impl("flatten_backward", flatten_backward);
  m.impl("dot", dot);
  m.impl("dot_backward", dot_backward);
  m.impl("gather_flat", gather_flat);
  m.impl("gather_flat_backward", gather_flat_backward);
  m.impl("dot_relu_backward", dot_relu_backward);
  m.impl("relu_backward", relu_backward);
  m.impl("take", take);
  m.impl("products", products);
  m.impl("products_backward", products_backward);
  m.impl("gated_norm", gated_norm);
  m.impl("gated_norm_backward", gated_norm_backward);
}
