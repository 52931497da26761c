// Attention over a cache of slots, in the order of the positions in a sequence.

#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "cells.h"
#include "lanes.h"
#include "prefetch.h"
#include "team.h"

namespace {

struct Shape {
  int64_t heads, groups, key_size, value_size, slot_size;
  int64_t query_row, query_head, key_row, key_head, value_row, value_head;  // strides
  float scale, softcap;
  int64_t window;
};

inline bool below(int64_t value, int64_t limit) { return 0 <= value && value < limit; }

// The rows of a forward pass: which KV position of which slot each row writes, and what it attends to,
// the first `length` KV positions of the slot and then those of its path. All columns [rows].
struct Batch {
  const int32_t *slot, *kv_position, *length;
  const int32_t* path;                         // [rows, paths]
  const int32_t* path_length;
  int64_t paths, rows;
};

// Whether the rows stay within a cache of `slots` slots of `slot_size` KV positions.
inline bool are_within(int64_t slots, int64_t slot_size, const Batch& b) {
  for (int64_t t = 0; t < b.rows; t++) {
    if (!below(b.slot[t], slots) || !below(b.kv_position[t], slot_size)) return false;
    if (!below(b.length[t], slot_size + 1) || !below(b.path_length[t], b.paths + 1)) return false;
    for (int64_t i = 0; i < b.path_length[t]; i++)
      if (!below(b.path[t * b.paths + i], slot_size)) return false;
  }
  return true;
}

constexpr int kMostHeads = 4;                  // query heads that share one read of keys and values
constexpr int64_t kTile = 8;                   // rows of a slot that are computed together
constexpr int64_t kNear = 2 * kLanes;          // positions whose values stay in the processor cache

// What a row sees of its slot: the first `length` KV positions, then those in `path`.
struct View {
  const int32_t* path;
  int64_t length, begin, end;                  // attended positions of the sequence

  int64_t kv_position(int64_t position) const {
    return position < length ? position : static_cast<int64_t>(path[position - length]);
  }
};

// The products of a key with the queries of heads [Heads, Fixed * kLanes], lane by lane.
template <int Heads, int Fixed, class Cell>
[[gnu::always_inline]] inline Lot<Heads> products(const float* queries, const Cell* key) {
  Lot<Heads> sums{};
#pragma GCC unroll 8
  for (int v = 0; v < Fixed; v++) {
    const Vector part = load(key + v * kLanes);
#pragma GCC unroll 4
    for (int h = 0; h < Heads; h++) sums.of[h] += load(queries + (h * Fixed + v) * kLanes) * part;
  }
  return sums;
}

// scores[head][j] = query . key for kLanes positions from `first` on, summed as by `dot`; -infinity outside
// of the view. `Fixed` is the size of a key in vectors; 0: known at run time only.
template <int Heads, int Fixed, class Cell>
void score(const float* queries, const Cell* keys, int64_t size, const View& view, int64_t first,
           float* scores, int64_t lds) {
  const int64_t last = first + kLanes;
  if (last <= view.begin) {                    // before the window
    for (int h = 0; h < Heads; h++) store(scores + h * lds + first, Vector{} - INFINITY);
    return;
  }
  if constexpr (Fixed > 0) {
    const bool is_whole = first >= view.begin && last <= std::min(view.end, view.length);
    const Cell* at[kLanes];
    for (int64_t j = first; j < last; j++) {
      const int64_t seen = is_whole ? j : view.kv_position(std::clamp(j, view.begin, view.end - 1));
      at[j - first] = keys + seen * row_cells<Cell>(size);
    }
    const Lot<Heads> all = totals<Heads>([&](int i) __attribute__((always_inline)) {
      return products<Heads, Fixed>(queries, at[i]);
    });
    if constexpr (kScaleCells<Cell> > 0) {
      float scales[kLanes];
      for (int i = 0; i < kLanes; i++) scales[i] = scale_of(at[i], size);
      for (int h = 0; h < Heads; h++) store(scores + h * lds + first, all.of[h] * load(scales));
    } else {
      for (int h = 0; h < Heads; h++) store(scores + h * lds + first, all.of[h]);
    }
    if (is_whole) return;
  }
  for (int64_t j = first; j < last; j++) {
    const bool is_seen = view.begin <= j && j < view.end;
    if (is_seen && Fixed > 0) continue;
    const Cell* key = keys + (is_seen ? view.kv_position(j) : 0) * row_cells<Cell>(size);
    const float scale = scale_of(key, size);
    for (int h = 0; h < Heads; h++)
      scores[h * lds + j] = is_seen ? dot(queries + h * size, key, size) * scale : -INFINITY;
  }
}

// Replaces scores by exp(score - highest) and returns the sum, the sink included.
inline float exponentiate(const Shape& s, float* scores, const View& view, const float* sink) {
  if (s.softcap > 0)
    for (int64_t j = view.begin; j < view.end; j++)
      scores[j] = std::tanh(scores[j] / s.softcap) * s.softcap;
  Vector mosts = Vector{} - INFINITY, lanes{};
  for (int64_t j = 0; j < view.end; j += kLanes) {
    const Vector next = load(scores + j);
    mosts = next > mosts ? next : mosts;
  }
  const float most = std::max(sink ? *sink : -INFINITY, greatest(mosts));
  for (int64_t j = 0; j < view.end; j += kLanes) {
    const Vector shifted = load(scores + j) - most;
    const Vector weight = shifted > -87.0f ? exponential(shifted) : Vector{};
    store(scores + j, weight);
    lanes += weight;
  }
  const float norm = total(lanes);
  return sink ? norm + std::exp(*sink - most) : norm;
}

// Multiplies the weights of positions by the scales of their values.
template <class Cell>
void rescale(const Cell* values, const float* scales, int64_t size, const View& view, float* weights) {
  if constexpr (kScaleCells<Cell> > 0) {
    const int64_t whole = std::min(view.length, view.end) / kLanes * kLanes;
    for (int64_t j = view.begin / kLanes * kLanes; j < whole; j += kLanes)
      store(weights + j, load(weights + j) * load(scales + j));
    for (int64_t j = std::max(whole, view.begin); j < view.end; j++)
      weights[j] *= scale_of(values + view.kv_position(j) * row_cells<Cell>(size), size);
  }
}

// Adds the weighted values of positions to sums[head][0 .. Vectors * kLanes), of rows that are `cells` long.
template <int Heads, int Vectors, class Cell>
void weigh(const Cell* values, int64_t cells, int64_t size, const View& view, int64_t begin, int64_t end,
           const float* weights, int64_t ldw, float* sums) {
  Vector part[Heads][Vectors];
  for (int h = 0; h < Heads; h++)
    for (int v = 0; v < Vectors; v++) part[h][v] = load(sums + h * size + v * kLanes);
  const auto add = [&](int64_t j, const Cell* at) {
    for (int v = 0; v < Vectors; v++) {
      const Vector value = in_register(load(at + v * kLanes));
      for (int h = 0; h < Heads; h++) part[h][v] += weights[h * ldw + j] * value;
    }
  };
  int64_t j = begin;
  for (; j < std::min(end, view.length); j++) add(j, values + j * cells);
  for (; j < end; j++) add(j, values + view.kv_position(j) * cells);
  for (int h = 0; h < Heads; h++)
    for (int v = 0; v < Vectors; v++) store(sums + h * size + v * kLanes, part[h][v]);
}

template <int Heads, class Cell>
void weigh_all(const Cell* values, int64_t size, const View& view, int64_t begin, int64_t end,
               const float* weights, int64_t ldw, float* sums) {
  const int64_t cells = row_cells<Cell>(size);
  int64_t column = 0;
  for (; column + 4 * kLanes <= size; column += 4 * kLanes)
    weigh<Heads, 4>(values + column, cells, size, view, begin, end, weights, ldw, sums + column);
  for (; column + kLanes <= size; column += kLanes)
    weigh<Heads, 1>(values + column, cells, size, view, begin, end, weights, ldw, sums + column);
  for (int64_t j = begin; j < end && column < size; j++)
    for (int64_t i = column; i < size; i++)
      for (int h = 0; h < Heads; h++)
        sums[h * size + i] += weights[h * ldw + j] * scalar(values + view.kv_position(j) * cells + i);
}

// y = x * scale
template <class Value>
void scale_values(const Value* x, float scale, int64_t size, float* y) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(y + i, load(x + i) * scale);
  for (; i < size; i++) y[i] = scalar(x + i) * scale;
}

struct Room {
  std::vector<float> queries, scores, sums, value_scales;
};

// Fetches what is read next: keys and values of a slot lie apart from those before them, and short
// stretches end before the processor has recognised them.
template <class Cell>
[[gnu::always_inline]] inline void fetch(const Cell* from, int64_t count) {
  const char* at = reinterpret_cast<const char*>(from);
  for (int64_t i = 0; i < count * static_cast<int64_t>(sizeof(Cell)); i += kLine)
    __builtin_prefetch(at + i, 0, 2);
}

// Attention of a tile of rows, for heads that share keys and values; `next` are the keys of the next call.
template <int Heads, class Cell>
void attend(const Shape& s, const Numbers& query, const Cell* keys, const Cell* values, const Cell* next,
            const std::vector<View>& views, const float* sinks, const Numbers& out, Room& room) {
  const int64_t rows = views.size();
  const int64_t key_cells = row_cells<Cell>(s.key_size), value_cells = row_cells<Cell>(s.value_size);
  int64_t longest = 0, stored = 0;
  for (const View& view : views) {
    longest = std::max(longest, view.end);
    stored = std::max(stored, std::min(view.end, view.length));
  }
  collect_scales(values, s.value_size, stored, room.value_scales);
  const int64_t lds = (longest + kLanes - 1) / kLanes * kLanes;
  room.queries.resize(rows * Heads * s.key_size);
  room.scores.resize(rows * Heads * lds);
  room.sums.assign(rows * Heads * s.value_size, 0.0f);
  for (int64_t t = 0; t < rows; t++)
    for (int h = 0; h < Heads; h++) {
      const void* from = query.from(t * s.query_row + h * s.query_head).data;
      float* to = &room.queries[(t * Heads + h) * s.key_size];
      query.is_narrow ? scale_values(static_cast<const uint16_t*>(from), s.scale, s.key_size, to)
                      : scale_values(static_cast<const float*>(from), s.scale, s.key_size, to);
    }
  const auto scored = s.key_size == 4 * kLanes   ? score<Heads, 4, Cell>
                      : s.key_size == 8 * kLanes ? score<Heads, 8, Cell>
                                                 : score<Heads, 0, Cell>;
  for (int64_t first = 0; first < longest; first += kLanes) {
    fetch(values + first * value_cells, std::min<int64_t>(kLanes, longest - first) * value_cells);
    for (int64_t t = 0; t < rows; t++)
      if (first < views[t].end)
        scored(&room.queries[t * Heads * s.key_size], keys, s.key_size, views[t], first,
               &room.scores[t * Heads * lds], lds);
  }
  float norms[kTile][Heads];
  for (int64_t t = 0; t < rows; t++)
    for (int h = 0; h < Heads; h++) {
      float* scores = &room.scores[(t * Heads + h) * lds];
      norms[t][h] = exponentiate(s, scores, views[t], sinks ? sinks + h : nullptr);
      rescale(values, room.value_scales.data(), s.value_size, views[t], scores);
    }
  for (int64_t first = 0; first < longest; first += kNear) {
    if (next) fetch(next + first * key_cells, std::min(kNear, longest - first) * key_cells);
    for (int64_t t = 0; t < rows; t++)
      weigh_all<Heads>(values, s.value_size, views[t], std::max(first, views[t].begin),
                       std::min(first + kNear, views[t].end), &room.scores[t * Heads * lds], lds,
                       &room.sums[t * Heads * s.value_size]);
  }
  for (int64_t t = 0; t < rows; t++)
    for (int h = 0; h < Heads; h++)
      for (int64_t i = 0; i < s.value_size; i++)
        out.set((t * s.heads + h) * s.value_size + i,
                room.sums[(t * Heads + h) * s.value_size + i] / norms[t][h]);
}

template <int Heads, class... Arguments>
void attend_of(int64_t heads, Arguments&&... arguments) {
  if (heads == Heads) return attend<Heads>(arguments...);
  if constexpr (Heads > 1) attend_of<Heads - 1>(heads, arguments...);
}

template <class Cell>
void attention(const Shape& s, const Numbers& query, const Numbers& new_keys, const Numbers& new_values,
               Cell* keys, Cell* values, const Batch& b, const float* sinks, const Numbers& out,
               int threads) {
  const int64_t rows = b.rows;
  const int64_t key_cells = row_cells<Cell>(s.key_size), value_cells = row_cells<Cell>(s.value_size);
  const int64_t key_slot = s.groups * s.slot_size * key_cells;
  const int64_t value_slot = s.groups * s.slot_size * value_cells;
  for (int64_t t = 0; t < rows; t++)
    for (int64_t g = 0; g < s.groups; g++) {
      const int64_t at = g * s.slot_size + b.kv_position[t];
      put_row(new_keys.from(t * s.key_row + g * s.key_head), keys + b.slot[t] * key_slot + at * key_cells,
              s.key_size);
      put_row(new_values.from(t * s.value_row + g * s.value_head),
              values + b.slot[t] * value_slot + at * value_cells, s.value_size);
    }
  std::vector<int64_t> tiles{0};                // first row of each tile, and the end
  for (int64_t t = 1; t <= rows; t++)
    if (t == rows || b.slot[t] != b.slot[tiles.back()] || t - tiles.back() == kTile)
      tiles.push_back(t);
  const int64_t per_group = s.heads / s.groups, parts = (per_group + kMostHeads - 1) / kMostHeads;
  const int64_t work = (static_cast<int64_t>(tiles.size()) - 1) * s.groups * parts;
  const int64_t longest = rows ? *std::max_element(b.length, b.length + rows) : 0;
  const int shares = parts_of(threads, work, rows * s.heads * longest * s.key_size);
  Team::of_process().run(shares, [&](int share) {
    thread_local Room room;
    thread_local std::vector<View> views;
    for (int64_t i = work * share / shares; i < work * (share + 1) / shares; i++) {
      const int64_t tile = i / (s.groups * parts), g = i / parts % s.groups, part = i % parts;
      const int64_t first = per_group * part / parts, count = per_group * (part + 1) / parts - first;
      const int64_t h = g * per_group + first, begin = tiles[tile];
      views.clear();
      for (int64_t t = begin; t < tiles[tile + 1]; t++) {
        const int64_t end = b.length[t] + b.path_length[t];
        const int64_t low = s.window > 0 ? std::max<int64_t>(0, end - s.window) : 0;
        views.push_back({b.path + t * b.paths, b.length[t], low, end});
      }
      const auto keys_of = [&](int64_t item) {
        const int64_t of = item / (s.groups * parts), group = item / parts % s.groups;
        return keys + b.slot[tiles[of]] * key_slot + group * s.slot_size * key_cells;
      };
      const Cell* next = i + 1 < work && keys_of(i + 1) != keys_of(i) ? keys_of(i + 1) : nullptr;
      attend_of<kMostHeads>(count, s, query.from(begin * s.query_row + h * s.query_head), keys_of(i),
                            values + b.slot[begin] * value_slot + g * s.slot_size * value_cells, next,
                            views,
                            sinks ? sinks + h : nullptr, out.from((begin * s.heads + h) * s.value_size),
                            room);
    }
  });
}

// Calls run(pointer to a cell) for a cache whose cells have `bytes` bytes.
template <class Run>
void by_cell(int64_t bytes, const Run& run) {
  if (bytes == 1) return run(static_cast<int8_t*>(nullptr));
  if (bytes == 2) return run(static_cast<uint16_t*>(nullptr));
  run(static_cast<float*>(nullptr));
}

}  // namespace
