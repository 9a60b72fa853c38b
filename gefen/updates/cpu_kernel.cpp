// One step of Gefen for the parameters of a table, fused and multi-threaded.
//
// The same statements, in the same order, as reference.py with the default Rule; see there and in
// first_moment.py, second_moment.py, codes.py and rounding.py. Plain C interface, called through
// ctypes, so that it depends on no version of torch. Maths is float32, sums are float64.
//
// A task is one matrix of a parameter (or a whole parameter that is kept exactly). Tasks are taken
// in waves whose gradients stay in the last-level cache: first the sums over rows and columns of a
// wave, then its update. Sums over columns are added up strip by strip, and strips follow from the
// shape alone, so the result does not depend on the number of threads.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <thread>
#include <vector>

namespace {

constexpr int kBins = 4096;
constexpr int kCells = 4 * kBins;
constexpr std::int64_t kWave = 1 << 21;   // elements of a wave: 8 MiB of float32 gradients
constexpr std::int64_t kTile = 1 << 15;   // elements a thread takes at a time
constexpr std::int64_t kStripBytes = 16 << 20;
constexpr std::int64_t kPiece = 512;      // values whose codes are sought together
constexpr int kLanes = 8;                 // divides kPiece
constexpr int kStrips = 32;
constexpr float kSmallest = 1.40129846e-45f;  // of float32: as a lower bound it changes only zero

enum Kind : std::int32_t { kExact = 0, kBlock = 1, kFactored = 2 };
enum Element : std::int32_t { kFloat32 = 0, kBfloat16 = 1 };
enum Phase : std::int32_t { kSums = 0, kUpdate = 1, kHistogram = 2 };

struct Segment {  // from a level to the one above
  float level;
  float slope;       // 2^24 over the distance to the level above
  float next;        // the level above, infinite at the top
  float next_slope;
};

struct Codes {
  const float* levels;        // 2^bits
  const Segment* segments;    // 2^bits
  const std::uint8_t* below;  // kCells + 1: levels above -1 in lower cells
};

struct Numbers {
  double decay, size, bound, correction, first_weight, second_weight, eps, sign;
};

struct Task {
  void* param;
  const void* grad;
  std::uint8_t* index;
  float* scale;
  float* first;        // exact: exp_avg
  float* second;       // exact: exp_avg_sq; block: one value a block
  float* row_mean;
  float* column_mean;
  double* row_sums;    // factored: where sums go or, in an update, are; null: scratch of the wave
  double* column_sums;
  const Codes* codes;
  std::int64_t rows, columns, matrix_rows, first_row, group_length, groups, groups_per_block;
  Numbers numbers;
  std::uint32_t key;
  std::int32_t kind, bits, element;
};

// ---------------------------------------------------------------------------------------------
// Elements

struct Float32 {
  using type = float;
  static float load(float value) { return value; }
  static float store(float value) { return value; }
};

struct Bfloat16 {
  using type = std::uint16_t;
  static float load(std::uint16_t value) {
    const std::uint32_t bits = static_cast<std::uint32_t>(value) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
  }
  static std::uint16_t store(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const std::uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;  // to even
    return static_cast<std::uint16_t>(value != value ? 0x7FC0u : rounded);
  }
};

using Floats = float __attribute__((vector_size(16)));
using Doubles = double __attribute__((vector_size(32)));

template <class E>
Floats load_four(const typename E::type* values) {
  return Floats{E::load(values[0]), E::load(values[1]), E::load(values[2]), E::load(values[3])};
}

float from_bits(std::int32_t bits) {
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

std::uint32_t mix(std::uint32_t x) {
  x ^= x >> 16;
  x *= 0x7FEB352Du;
  x ^= x >> 15;
  x *= 0x846CA68Bu;
  return x ^ (x >> 16);
}

// Largest magnitude; NaN if any is: as an integer, NaN is above everything else.
float largest(const float* values, std::int64_t count) {
  std::int32_t top = 0;
  for (std::int64_t j = 0; j < count; ++j) {
    std::int32_t bits;
    std::memcpy(&bits, values + j, 4);
    bits &= 0x7FFFFFFF;
    top = bits > top ? bits : top;
  }
  return from_bits(top);
}

double advanced(double stored, double value, double weight) {
  // Squares of finite gradients can exceed float32; infinity would make 0 * inf of it later.
  value = value > std::numeric_limits<float>::max() ? std::numeric_limits<float>::max() : value;
  return stored + weight * (value - stored);
}

// ---------------------------------------------------------------------------------------------
// Threads: those of OpenMP where torch runs on it, else started for each phase of a wave

// `void GOMP_parallel(void (*)(void*), void*, unsigned threads, unsigned flags)`, part of the binary
// interface of GNU's and LLVM's OpenMP. The threads that computed the gradients wait in their
// pool for a while, busily: threads beside them would have to share their processors.
using Pool = void (*)(void (*)(void*), void*, unsigned, unsigned);
Pool pool = nullptr;

class Team {
 public:
  explicit Team(int threads) : threads_(std::max(1, threads)) {}

  // Run `body(thread)` on all threads; an exception of one is reported by returning false.
  bool run(const std::function<void(int)>& body) {
    body_ = &body;
    next_ = 0;
    if (pool && threads_ > 1) {
      pool([](void* team) { static_cast<Team*>(team)->join_in(); }, this,
           static_cast<unsigned>(threads_), 0);
      return !failed_;
    }
    std::vector<std::thread> others;
    try {
      others.reserve(threads_ - 1);
      for (int t = 1; t < threads_; ++t) others.emplace_back([this] { join_in(); });
    } catch (...) {
      // Fewer threads than asked for do the same work: they take tiles from one counter.
    }
    join_in();
    for (auto& thread : others) thread.join();
    return !failed_;
  }

  int threads() const { return threads_; }

 private:
  void join_in() {
    try {
      (*body_)(next_++);
    } catch (...) {
      failed_ = true;
    }
  }

  int threads_;
  const std::function<void(int)>* body_ = nullptr;
  std::atomic<int> next_{0};
  std::atomic<bool> failed_{false};
};

bool parallel(Team& team, std::int64_t count, const std::function<void(std::int64_t, int)>& body) {
  std::atomic<std::int64_t> next{0};
  return team.run([&](int thread) {
    for (std::int64_t i = next++; i < count; i = next++) body(i, thread);
  });
}

// ---------------------------------------------------------------------------------------------
// Work

struct Strip {
  int task;
  std::int64_t start, stop;  // rows
  double* partial;           // columns, of this strip alone
};

struct Factors {  // of one factored task in one wave
  std::vector<double> row_sums, column_sums, partials;
  std::vector<float> old_root, root, inverse;
  float mean = 1;
  std::int64_t strips = 1;
};

using Buffer = std::vector<float>;  // of one thread: the first moment of a group

std::int64_t strip_count(const Task& task) {
  const std::int64_t bytes = std::max<std::int64_t>(1, kStripBytes / (8 * task.columns));
  const std::int64_t useful = (task.rows * task.columns + kTile - 1) / kTile;
  return std::max<std::int64_t>(1, std::min({std::int64_t{kStrips}, bytes, useful, task.rows}));
}

// Squares of four gradients, for sums: what is not finite reaches its own group through the first
// moment and nothing further.
template <class E>
Doubles squares(const typename E::type* grad) {
  constexpr float top = std::numeric_limits<float>::max();
  const Floats g = load_four<E>(grad), most = Floats{} + top;
  Floats s = g * g;
  s = s > most ? most : s;
  return __builtin_convertvector(s == s ? s : Floats{}, Doubles);
}

template <class E>
void sum_squares(const Task& task, std::int64_t start, std::int64_t stop, double* row_sums,
                 double* columns) {
  const auto* grad = static_cast<const typename E::type*>(task.grad);
  const std::int64_t whole = task.columns / 4 * 4;
  std::fill_n(columns, task.columns, 0.0);
  for (std::int64_t i = start; i < stop; ++i) {
    const auto* row = grad + i * task.columns;
    Doubles lanes{};
    for (std::int64_t j = 0; j < whole; j += 4) {
      const Doubles s = squares<E>(row + j);
      Doubles column;
      std::memcpy(&column, columns + j, sizeof column);
      column += s;
      std::memcpy(columns + j, &column, sizeof column);
      lanes += s;
    }
    typename E::type tail[4] = {};
    std::copy(row + whole, row + task.columns, tail);
    const Doubles s = squares<E>(tail);
    for (std::int64_t j = whole; j < task.columns; ++j) columns[j] += s[j - whole];
    lanes += s;
    row_sums[i] = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
  }
}

template <class E>
double sum_of_squares(const typename E::type* grad, std::int64_t count) {
  Doubles lanes{};
  std::int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    const Doubles g = __builtin_convertvector(load_four<E>(grad + j), Doubles);
    lanes += g * g;
  }
  double sum = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
  for (; j < count; ++j) sum += static_cast<double>(E::load(grad[j])) * E::load(grad[j]);
  return sum;
}

void prepare_factors(const Task& task, Factors& f, const double* column_sums) {
  const std::int64_t columns = task.columns;
  f.old_root.resize(columns);
  f.root.resize(columns);
  f.inverse.resize(columns);
  double total = 0;
  for (std::int64_t j = 0; j < columns; ++j) {
    const float old = task.column_mean[j];
    const float now = static_cast<float>(
        advanced(old, column_sums[j] / static_cast<double>(task.matrix_rows),
                 task.numbers.second_weight));
    task.column_mean[j] = now;
    total += now;
    f.old_root[j] = std::sqrt(old);
    f.root[j] = std::sqrt(now);
    f.inverse[j] = f.root[j] == 0 ? 0 : 1 / f.root[j];
  }
  f.mean = static_cast<float>(total / static_cast<double>(columns));
  if (f.mean == 0) f.mean = 1;  // a matrix without any gradient so far has no update
}

// ---------------------------------------------------------------------------------------------
// The first moment

void read_codes(const Task& task, std::int64_t row, std::int64_t start, std::int64_t count,
                float scale, float* moment) {
  const float* levels = task.codes->levels;
  if (task.bits == 8) {
    const std::uint8_t* index = task.index + row * task.columns + start;
#pragma GCC unroll 8
    for (std::int64_t j = 0; j < count; ++j) moment[j] = levels[index[j]] * scale;
    return;
  }
  const std::uint8_t* index = task.index + row * ((task.columns + 1) / 2) + start / 2;
  for (std::int64_t j = 0; j + 2 <= count; j += 2) {
    moment[j] = levels[index[j / 2] & 15] * scale;
    moment[j + 1] = levels[index[j / 2] >> 4] * scale;
  }
  if (count % 2) moment[count - 1] = levels[index[count / 2] & 15] * scale;
}

using Eight = float __attribute__((vector_size(32)));
using Words = std::int32_t __attribute__((vector_size(32)));

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Words{__VA_ARGS__})
#endif

// Two segments, one behind the other.
Eight segments_of(const Segment* segments, std::int32_t low, std::int32_t high) {
  Floats a, b;
  std::memcpy(&a, segments + low, sizeof a);
  std::memcpy(&b, segments + high, sizeof b);
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7);
#else
  return Eight{a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]};
#endif
}

// The codes of eight values from the number of levels in lower cells, in place. A segment is one
// load, and eight of them are transposed: four gathers would take twice as long.
void round_eight(const Segment* segments, const float* scaled, const float* limit,
                 std::int32_t* codes) {
  const Eight a = segments_of(segments, codes[0], codes[4]);
  const Eight b = segments_of(segments, codes[1], codes[5]);
  const Eight c = segments_of(segments, codes[2], codes[6]);
  const Eight d = segments_of(segments, codes[3], codes[7]);
  const Eight ab = SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
  const Eight cd = SHUFFLE(c, d, 0, 8, 1, 9, 4, 12, 5, 13);
  const Eight ab_next = SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
  const Eight cd_next = SHUFFLE(c, d, 2, 10, 3, 11, 6, 14, 7, 15);
  const Eight next = SHUFFLE(ab_next, cd_next, 0, 1, 8, 9, 4, 5, 12, 13);
  Eight level = SHUFFLE(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13);
  Eight slope = SHUFFLE(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
  Eight value, most;
  Words code;
  std::memcpy(&value, scaled, sizeof value);
  std::memcpy(&most, limit, sizeof most);
  std::memcpy(&code, codes, sizeof code);
  const Words beyond = value >= next;  // a cell has one level at most; -1 where it is passed
  level = beyond ? next : level;
  slope = beyond ? SHUFFLE(ab_next, cd_next, 2, 3, 10, 11, 6, 7, 14, 15) : slope;
  const Words up = (value - level) * slope > most;
  code -= beyond + up;
  std::memcpy(codes, &code, sizeof code);
}

// Codes of `count` values, rounded up with the probability that leaves their mean unchanged.
void find_codes(const Codes& table, const float* __restrict value, std::int64_t count, float divisor,
                std::uint32_t row_key, std::uint32_t column, std::uint8_t* __restrict codes) {
  constexpr float half = kCells / 2;
  float scaled[kPiece], limit[kPiece];
  std::int32_t found[kPiece];  // the cell, then the code
  for (std::uint32_t j = 0; j < static_cast<std::uint32_t>(count); ++j) {  // as wide as the hash
    scaled[j] = value[j] / divisor;
    float position = scaled[j] * half + half;
    position = position > 0 ? position : 0;  // NaN too gets a valid cell
    position = position < kCells ? position : kCells;
    found[j] = static_cast<std::int32_t>(position);
    std::uint32_t x = row_key + (column + j) * 0x85EBCA77u;
    x ^= x >> 15;
    x *= 0x7FEB352Du;
    x ^= x >> 13;
    x *= 0x846CA68Bu;
    limit[j] = static_cast<float>(static_cast<std::int32_t>(x >> 8));
  }
  const std::uint8_t* below = table.below;
#pragma GCC unroll 8
  for (std::int64_t j = 0; j < count; ++j) found[j] = below[found[j]];
  const std::int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
  std::fill(found + count, found + padded, 0);
  std::fill(scaled + count, scaled + padded, 0.0f);
  std::fill(limit + count, limit + padded, 0.0f);
  for (std::int64_t j = 0; j < count; j += kLanes) {
    round_eight(table.segments, scaled + j, limit + j, found + j);
  }
  for (std::int64_t j = 0; j < count; ++j) codes[j] = static_cast<std::uint8_t>(found[j]);
}

void write_codes(const Task& task, std::int64_t row, std::int64_t start, std::int64_t count,
                 float scale, const float* moment) {
  const float divisor = std::max(scale, kSmallest);
  const std::uint32_t row_key =
      mix(static_cast<std::uint32_t>(task.first_row + row) * 0x9E3779B1u + task.key);
  for (std::int64_t j = 0; j < count; j += kPiece) {
    const std::int64_t piece = std::min(kPiece, count - j), column = start + j;
    std::uint8_t codes[kPiece + 1];
    const bool bytes = task.bits == 8;
    std::uint8_t* out = bytes ? task.index + row * task.columns + column : codes;
    find_codes(*task.codes, moment + j, piece, divisor, row_key,
               static_cast<std::uint32_t>(column), out);
    if (bytes) continue;
    codes[piece] = 0;  // an odd last column leaves the high half zero
    std::uint8_t* packed = task.index + row * ((task.columns + 1) / 2) + column / 2;
    for (std::int64_t k = 0; k < piece; k += 2) packed[k / 2] = codes[k] | (codes[k + 1] << 4);
  }
}

// ---------------------------------------------------------------------------------------------
// The update

float lerp(float mean, float value, float weight) {
  return weight < 0.5f ? mean + weight * (value - mean)
                       : value - (value - mean) * (1 - weight);
}

template <class E>
void update_exact(const Task& task, std::int64_t start, std::int64_t stop) {
  auto* param = static_cast<typename E::type*>(task.param);
  const auto* grad = static_cast<const typename E::type*>(task.grad);
  const Numbers& n = task.numbers;
  const float decay = n.decay, size = n.size, correction = n.correction, eps = n.eps;
  const float first_weight = n.first_weight, second_weight = n.second_weight, sign = n.sign;
  const float keep = 1 - n.second_weight;
  for (std::int64_t j = start; j < stop; ++j) {
    const float g = sign * E::load(grad[j]);
    const float mean = lerp(task.first[j], g, first_weight);
    const float square = task.second[j] * keep + second_weight * g * g;
    task.first[j] = mean;
    task.second[j] = square;
    const float update = mean / (std::sqrt(square) / correction + eps);
    param[j] = E::store(E::load(param[j]) * decay - size * update);
  }
}

// One group of a row. `old_root`, `root`, `inverse` are per column, null in the block form, where
// `denominator` holds for the whole group; in the factored form it is the row's factor.
template <class E, bool factored>
void update_group(const Task& task, std::int64_t row, std::int64_t start, std::int64_t count,
                  float denominator, const Factors* factors, Buffer& buffer) {
  const std::int64_t offset = row * task.columns + start;
  auto* __restrict param = static_cast<typename E::type*>(task.param) + offset;
  const auto* __restrict grad = static_cast<const typename E::type*>(task.grad) + offset;
  const Numbers& n = task.numbers;
  const float decay = n.decay, size = n.size, bound = n.bound, eps = n.eps, sign = n.sign;
  const float weight = n.first_weight;
  float* scale = task.scale + row * task.groups + start / task.group_length;
  float* __restrict moment = buffer.data();
  read_codes(task, row, start, count, *scale, moment);
  const float* __restrict old_root = factored ? factors->old_root.data() + start : nullptr;
  const float* __restrict root = factored ? factors->root.data() + start : nullptr;
  const float* __restrict inverse = factored ? factors->inverse.data() + start : nullptr;
  for (std::int64_t j = 0; j < count; ++j) {
    const float g = sign * E::load(grad[j]);
    const float m = lerp(factored ? moment[j] * old_root[j] : moment[j], g, weight);
    float update = m / (factored ? denominator * root[j] + eps : denominator);
    if (factored) {
      update = update > bound ? bound : update;
      update = update < -bound ? -bound : update;
      update += m * 0.0f;  // zero, or NaN where the moment is not finite: the bound hides nothing
    }
    param[j] = E::store(E::load(param[j]) * decay - size * update);
    moment[j] = factored ? m * inverse[j] : m;
  }
  *scale = largest(moment, count);
  write_codes(task, row, start, count, *scale, moment);
}

template <class E>
void update_factored(const Task& task, std::int64_t start, std::int64_t stop,
                     const double* row_sums, const Factors& factors, Buffer& buffer) {
  const float correction = task.numbers.correction;
  for (std::int64_t i = start; i < stop; ++i) {
    const float row = static_cast<float>(
        advanced(task.row_mean[i], row_sums[i] / static_cast<double>(task.columns),
                 task.numbers.second_weight));
    task.row_mean[i] = row;
    const float root = std::sqrt(row / factors.mean) / correction;
    for (std::int64_t j = 0; j < task.columns; j += task.group_length) {
      const std::int64_t count = std::min(task.group_length, task.columns - j);
      update_group<E, true>(task, i, j, count, root, &factors, buffer);
    }
  }
}

template <class E>
void update_blocks(const Task& task, std::int64_t start, std::int64_t stop, Buffer& buffer) {
  const auto* grad = static_cast<const typename E::type*>(task.grad);
  const std::int64_t length = task.group_length * task.groups_per_block;
  const std::int64_t blocks = (task.columns + length - 1) / length;
  const float correction = task.numbers.correction, eps = task.numbers.eps;
  for (std::int64_t i = start; i < stop; ++i) {
    for (std::int64_t block = 0; block < blocks; ++block) {
      const std::int64_t first = block * length, last = std::min(first + length, task.columns);
      const double sum = sum_of_squares<E>(grad + i * task.columns + first, last - first);
      float& second = task.second[i * blocks + block];
      second = static_cast<float>(advanced(second, sum / static_cast<double>(last - first),
                                           task.numbers.second_weight));
      const float denominator = std::sqrt(second) / correction + eps;
      for (std::int64_t j = first; j < last; j += task.group_length) {
        update_group<E, false>(task, i, j, std::min(task.group_length, last - j), denominator,
                               nullptr, buffer);
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------
// The histogram that a codebook is learned from

template <class E>
void count_row(const Task& task, std::int64_t i, const float* inverse, Buffer& buffer,
               std::int64_t* bins) {
  const auto* row = static_cast<const typename E::type*>(task.grad) + i * task.columns;
  const float sign = task.numbers.sign;
  for (std::int64_t start = 0; start < task.columns; start += task.group_length) {
    const std::int64_t count = std::min(task.group_length, task.columns - start);
    float* value = buffer.data();
    for (std::int64_t j = 0; j < count; ++j) {
      const float g = sign * E::load(row[start + j]);
      value[j] = inverse ? g * inverse[start + j] : g;
    }
    const float top = largest(value, count);
    if (!(top > 0 && top <= std::numeric_limits<float>::max())) continue;
    for (std::int64_t j = 0; j < count; ++j) {
      const float position = (value[j] / top + 1) * (kBins / 2);
      ++bins[std::min(static_cast<int>(position), kBins - 1)];
    }
  }
}

template <class Body>
void by_element(const Task& task, const Body& body) {
  if (task.element == kBfloat16) {
    body(Bfloat16{});
  } else {
    body(Float32{});
  }
}

// ---------------------------------------------------------------------------------------------
// Phases of a wave

class Wave {
 public:
  Wave(const Task* tasks, int count, Team& team, std::vector<Buffer>& buffers)
      : tasks_(tasks), count_(count), team_(team), buffers_(buffers), factors_(count) {}

  // Sums of squares of all factored tasks, or of those `missing` theirs alone.
  bool sums(bool missing) {
    missing_ = missing;
    std::vector<Strip> strips;
    for (int t = 0; t < count_; ++t) {
      const Task& task = tasks_[t];
      if (!wants_sums(task)) continue;
      Factors& f = factors_[t];
      f.strips = strip_count(task);
      f.partials.resize(f.strips * task.columns);
      if (!task.row_sums) f.row_sums.resize(task.rows);
      for (std::int64_t s = 0; s < f.strips; ++s) {
        strips.push_back({t, task.rows * s / f.strips, task.rows * (s + 1) / f.strips,
                          f.partials.data() + s * task.columns});
      }
    }
    const bool well = parallel(team_, strips.size(), [&](std::int64_t i, int) {
      const Strip& strip = strips[i];
      const Task& task = tasks_[strip.task];
      by_element(task, [&](auto element) {
        sum_squares<decltype(element)>(task, strip.start, strip.stop, row_sums(strip.task),
                                       strip.partial);
      });
    });
    return well && parallel(team_, count_, [&](std::int64_t t, int) { add_strips(t); });
  }

  bool update() {
    return parallel(team_, count_, [&](std::int64_t t, int) {
             if (tasks_[t].kind == kFactored) {
               prepare_factors(tasks_[t], factors_[t], column_sums(t));
             }
           }) &&
           over_rows([&](const Task& task, std::int64_t t, std::int64_t start, std::int64_t stop,
                         Buffer& buffer) {
             by_element(task, [&](auto element) {
               using E = decltype(element);
               if (task.kind == kExact) {
                 update_exact<E>(task, start, stop);
               } else if (task.kind == kBlock) {
                 update_blocks<E>(task, start, stop, buffer);
               } else {
                 update_factored<E>(task, start, stop, row_sums(t), factors_[t], buffer);
               }
             });
           });
  }

  bool histogram(std::int64_t* total) {
    std::vector<std::vector<std::int64_t>> bins(team_.threads(), std::vector<std::int64_t>(kBins));
    const bool well =
        parallel(team_, count_,
                 [&](std::int64_t t, int) {
                   const Task& task = tasks_[t];
                   if (task.kind != kFactored) return;
                   Factors& f = factors_[t];
                   f.inverse.resize(task.columns);
                   for (std::int64_t j = 0; j < task.columns; ++j) {
                     const double root = std::sqrt(task.column_sums[j]);
                     f.inverse[j] = static_cast<float>(root == 0 ? 0 : 1 / root);
                   }
                 }) &&
        over_rows_of_threads([&](const Task& task, std::int64_t t, std::int64_t start,
                                 std::int64_t stop, int thread) {
          const float* inverse = task.kind == kFactored ? factors_[t].inverse.data() : nullptr;
          by_element(task, [&](auto element) {
            for (std::int64_t i = start; i < stop; ++i) {
              count_row<decltype(element)>(task, i, inverse, buffers_[thread],
                                           bins[thread].data());
            }
          });
        });
    for (const auto& own : bins) {
      for (int i = 0; i < kBins; ++i) total[i] += own[i];
    }
    return well;
  }

 private:
  bool wants_sums(const Task& task) const {
    return task.kind == kFactored && !(missing_ && task.column_sums);
  }

  double* row_sums(std::int64_t t) {
    return tasks_[t].row_sums ? tasks_[t].row_sums : factors_[t].row_sums.data();
  }

  double* column_sums(std::int64_t t) {
    return tasks_[t].column_sums ? tasks_[t].column_sums : factors_[t].column_sums.data();
  }

  void add_strips(std::int64_t t) {
    const Task& task = tasks_[t];
    if (!wants_sums(task)) return;
    Factors& f = factors_[t];
    if (!task.column_sums) f.column_sums.resize(task.columns);
    double* out = column_sums(t);
    std::fill_n(out, task.columns, 0.0);
    for (std::int64_t s = 0; s < f.strips; ++s) {
      const double* partial = f.partials.data() + s * task.columns;
      for (std::int64_t j = 0; j < task.columns; ++j) out[j] += partial[j];
    }
    f.partials = std::vector<double>();
  }

  template <class Body>
  bool over_rows_of_threads(const Body& body) {
    std::vector<Strip> tiles;
    for (int t = 0; t < count_; ++t) {
      const Task& task = tasks_[t];
      const std::int64_t step = std::max<std::int64_t>(1, kTile / std::max<std::int64_t>(
                                                                     1, task.columns));
      for (std::int64_t row = 0; row < task.rows; row += step) {
        tiles.push_back({t, row, std::min(row + step, task.rows), nullptr});
      }
    }
    return parallel(team_, tiles.size(), [&](std::int64_t i, int thread) {
      const Strip& tile = tiles[i];
      Buffer& buffer = buffers_[thread];
      const auto length = static_cast<std::size_t>(tasks_[tile.task].group_length);
      if (buffer.size() < length) buffer.resize(length);
      body(tasks_[tile.task], tile.task, tile.start, tile.stop, thread);
    });
  }

  template <class Body>
  bool over_rows(const Body& body) {
    return over_rows_of_threads([&](const Task& task, std::int64_t t, std::int64_t start,
                                    std::int64_t stop, int thread) {
      body(task, t, start, stop, buffers_[thread]);
    });
  }

  const Task* tasks_;
  int count_;
  Team& team_;
  std::vector<Buffer>& buffers_;
  std::vector<Factors> factors_;
  bool missing_ = false;
};

bool run(const Task* tasks, std::int64_t count, int phase, std::int64_t* bins, int threads) {
  Team team(threads);
  std::vector<Buffer> buffers(team.threads());
  for (std::int64_t start = 0; start < count;) {
    std::int64_t stop = start, elements = 0;
    while (stop < count && (stop == start || elements < kWave)) {
      elements += tasks[stop].rows * tasks[stop].columns;
      ++stop;
    }
    Wave wave(tasks + start, static_cast<int>(stop - start), team, buffers);
    bool well = true;
    if (phase == kHistogram) {
      well = wave.histogram(bins);
    } else {
      well = wave.sums(phase == kUpdate) && (phase == kSums || wave.update());
    }
    if (!well) return false;
    start = stop;
  }
  return true;
}

}  // namespace

extern "C" {

// Share the threads of an OpenMP that is loaded already; `parallel` is its GOMP_parallel or null.
void gefen_use_pool(void* parallel) { pool = reinterpret_cast<Pool>(parallel); }

// Bytes of a Task, for the caller to compare with its own idea of it.
std::int64_t gefen_task_bytes() { return sizeof(Task); }

// Returns 0, or 1 where memory ran out; `phase` is one of enum Phase.
int gefen_run(const Task* tasks, std::int64_t count, int phase, std::int64_t* bins, int threads) {
  try {
    return run(tasks, count, phase, bins, threads) ? 0 : 1;
  } catch (...) {
    return 1;
  }
}

}  // extern "C"
