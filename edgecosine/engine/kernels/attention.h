// Attention over a cache of slots, by position.

#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "lanes.h"

namespace {

constexpr int64_t kParallelWork = 1 << 20;     // products that are worth more than one thread

struct Shape {
  int64_t heads, groups, key_size, value_size, cells, paths;
  int64_t query_row, query_head, key_row, key_head, value_row, value_head;  // strides
  float scale, softcap;
  int64_t window;
};

// Whether the rows stay within a cache of `slots` slots of `cells` cells.
inline bool are_within(int64_t slots, int64_t cells, const int32_t* slot, const int32_t* cell,
                       const int32_t* length, const int32_t* path, const int32_t* path_length,
                       int64_t paths, int64_t rows) {
  const auto below = [](int64_t value, int64_t limit) { return 0 <= value && value < limit; };
  for (int64_t t = 0; t < rows; t++) {
    if (!below(slot[t], slots) || !below(cell[t], cells)) return false;
    if (!below(length[t], cells + 1) || !below(path_length[t], paths + 1)) return false;
    for (int64_t i = 0; i < path_length[t]; i++)
      if (!below(path[t * paths + i], cells)) return false;
  }
  return true;
}

// sum[column .. column + Vectors * kLanes) = the values of all positions, weighted; sums stay in
// registers while the positions go by.
template <int Vectors, class Value, class Cell>
void weigh(const Value* values, int64_t size, const Cell& cell, int64_t begin, int64_t end,
           const float* weights, float* sum) {
  Vector part[Vectors] = {};
  for (int64_t j = begin; j < end; j++) {
    const Value* at = values + cell(j) * size;
    for (int v = 0; v < Vectors; v++) part[v] += weights[j] * load(at + v * kLanes);
  }
  for (int v = 0; v < Vectors; v++) store(sum + v * kLanes, part[v]);
}

template <class Value>
void attend(const Shape& s, const Value* query, const Value* keys, const Value* values,
            int64_t length, const int32_t* path, int64_t path_length, const float* sink, Value* out,
            std::vector<float>& scores, std::vector<float>& scratch) {
  const int64_t visible = length + path_length;
  const int64_t begin = s.window > 0 ? std::max<int64_t>(0, visible - s.window) : 0;
  const auto cell = [&](int64_t position) {
    return position < length ? position : static_cast<int64_t>(path[position - length]);
  };
  scores.assign((visible + kLanes) / kLanes * kLanes, -INFINITY);
  scratch.assign(s.key_size + s.value_size, 0.0f);
  float* q = scratch.data();
  float* sum = q + s.key_size;
  for (int64_t i = 0; i < s.key_size; i++) q[i] = scalar(query + i) * s.scale;
  float most = sink ? *sink : -INFINITY;
  for (int64_t j = begin; j < visible; j++) {
    float score = dot(q, keys + cell(j) * s.key_size, s.key_size);
    if (s.softcap > 0) score = std::tanh(score / s.softcap) * s.softcap;
    scores[j] = score;
    most = std::max(most, score);
  }
  Vector lanes{};
  for (size_t j = 0; j < scores.size(); j += kLanes) {
    const Vector shifted = load(&scores[j]) - most;
    const Vector weight = shifted > -87.0f ? exponential(shifted) : Vector{};
    store(&scores[j], weight);
    lanes += weight;
  }
  float norm = total(lanes);
  if (sink) norm += std::exp(*sink - most);
  int64_t column = 0;
  for (; column + 4 * kLanes <= s.value_size; column += 4 * kLanes)
    weigh<4>(values + column, s.value_size, cell, begin, visible, scores.data(), sum + column);
  for (; column + kLanes <= s.value_size; column += kLanes)
    weigh<1>(values + column, s.value_size, cell, begin, visible, scores.data(), sum + column);
  for (int64_t j = begin; j < visible; j++)
    for (int64_t i = column; i < s.value_size; i++)
      sum[i] += scores[j] * scalar(values + cell(j) * s.value_size + i);
  for (int64_t i = 0; i < s.value_size; i++) put(out + i, sum[i] / norm);
}

template <class Value>
void attention(const Shape& s, const Value* query, const Value* new_keys, const Value* new_values,
               Value* keys, Value* values, const int32_t* slot, const int32_t* cell,
               const int32_t* length, const int32_t* path, const int32_t* path_length,
               const float* sinks, Value* out, int64_t rows, int threads) {
  const int64_t key_slot = s.groups * s.cells * s.key_size;
  const int64_t value_slot = s.groups * s.cells * s.value_size;
  for (int64_t t = 0; t < rows; t++)
    for (int64_t g = 0; g < s.groups; g++) {
      std::memcpy(keys + slot[t] * key_slot + (g * s.cells + cell[t]) * s.key_size,
                  new_keys + t * s.key_row + g * s.key_head, s.key_size * sizeof(Value));
      std::memcpy(values + slot[t] * value_slot + (g * s.cells + cell[t]) * s.value_size,
                  new_values + t * s.value_row + g * s.value_head, s.value_size * sizeof(Value));
    }
  const int64_t per_group = s.heads / s.groups;
  const int64_t work = rows * s.heads;
  const int64_t longest = rows ? *std::max_element(length, length + rows) : 0;
  const bool is_large = work * longest * s.key_size >= kParallelWork && work >= 2 * threads;
#pragma omp parallel num_threads(threads) if (threads > 1 && is_large)
  {
    std::vector<float> scores, scratch;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < work; i++) {
      const int64_t t = i / s.heads, h = i % s.heads, g = h / per_group;
      attend(s, query + t * s.query_row + h * s.query_head,
             keys + slot[t] * key_slot + g * s.cells * s.key_size,
             values + slot[t] * value_slot + g * s.cells * s.value_size, length[t],
             path + t * s.paths, path_length[t], sinks ? sinks + h : nullptr,
             out + (t * s.heads + h) * s.value_size, scores, scratch);
    }
  }
}

}  // namespace
