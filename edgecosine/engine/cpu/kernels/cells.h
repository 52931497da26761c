// The number formats of keys and values in the cache: float32, bfloat16, and 8-bit integers, of which a
// row of a head is followed by its float32 scale.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "lanes.h"

namespace {

template <class Cell> constexpr int64_t kScaleCells = 0;
template <> constexpr int64_t kScaleCells<int8_t> = sizeof(float);

// Cells of a row of `size` values.
template <class Cell> constexpr int64_t row_cells(int64_t size) { return size + kScaleCells<Cell>; }

// The scale of a row of `size` values.
template <class Cell>
[[gnu::always_inline]] inline float scale_of(const Cell* row, int64_t size) {
  if constexpr (!kScaleCells<Cell>) return 1.0f;
  float scale;
  std::memcpy(&scale, row + size, sizeof scale);
  return scale;
}

// The scales of the first `count` rows of a slot, padded to whole vectors; none in formats without.
template <class Cell>
void collect_scales(const Cell* rows, int64_t size, int64_t count, std::vector<float>& scales) {
  if constexpr (kScaleCells<Cell> > 0) {
    scales.resize(count + kLanes);
    for (int64_t j = 0; j < count; j++) scales[j] = scale_of(rows + j * row_cells<Cell>(size), size);
  }
}

// Queries, new keys, new values or results of a pass, in float32 or bfloat16.
struct Numbers {
  void* data;
  bool is_narrow;

  Numbers(const float* of) : data(const_cast<float*>(of)), is_narrow(false) {}
  Numbers(const void* of, int bytes) : data(const_cast<void*>(of)), is_narrow(bytes == 2) {}

  Numbers from(int64_t i) const { return {static_cast<char*>(data) + i * bytes(), bytes()}; }
  int bytes() const { return is_narrow ? 2 : 4; }
  float get(int64_t i) const {
    return is_narrow ? widen(static_cast<uint16_t*>(data)[i]) : static_cast<float*>(data)[i];
  }
  void set(int64_t i, float v) const {
    is_narrow ? put(static_cast<uint16_t*>(data) + i, v) : put(static_cast<float*>(data) + i, v);
  }
};

constexpr float kLeastCell = 1e-30f;           // smaller values are zeros: the inverse of a scale is finite

// Writes a row of the cache. Integers have the scale of the greatest value, which becomes 127; a row with
// NaN or infinity becomes NaN.
template <class Cell>
void put_row(const Numbers& from, Cell* to, int64_t size) {
  if constexpr (!kScaleCells<Cell>) {
    for (int64_t i = 0; i < size; i++) put(to + i, from.get(i));
  } else {
    float most = 0;
    bool is_finite = true;
    for (int64_t i = 0; i < size; i++) {
      const float magnitude = std::fabs(from.get(i));
      is_finite &= magnitude < INFINITY;
      most = magnitude > most ? magnitude : most;
    }
    const bool is_zero = !is_finite || most < kLeastCell;
    const float scale = !is_finite ? NAN : is_zero ? 0.0f : most / 127.0f;
    const float inverse = is_zero ? 0.0f : 127.0f / most;
    for (int64_t i = 0; i < size; i++)
      to[i] = is_zero ? 0 : static_cast<int8_t>(std::rint(from.get(i) * inverse));
    std::memcpy(to + size, &scale, sizeof scale);
  }
}

}  // namespace
