// The most probable token of each row of a decoder.

#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "decoder.h"

namespace {

constexpr int64_t kStretch = 64 * kLanes;      // logits of which only the highest is remembered

// The output of the highest logit, the first of equal ones; -1 where the highest is infinite or any is NaN.
inline int64_t most_probable(const float* logits, int64_t outputs) {
  float most = -INFINITY;
  int64_t begin = 0;                           // of the stretch with the highest logit
  for (int64_t first = 0; first < outputs; first += kStretch) {
    const int64_t end = std::min(first + kStretch, outputs);
    Vector mosts = Vector{} - INFINITY;
    Ints is_nan{};
    int64_t i = first;
    for (; i + kLanes <= end; i += kLanes) {
      const Vector next = load(logits + i);
      mosts = next > mosts ? next : mosts;
      is_nan |= next != next;
    }
    bool has_nan = false;
    for (int lane = 0; lane < kLanes; lane++) has_nan |= is_nan[lane] != 0;
    float highest = greatest(mosts);
    for (; i < end; i++) {
      highest = std::max(highest, logits[i]);
      has_nan |= logits[i] != logits[i];
    }
    if (has_nan) return -1;
    if (highest > most) {
      most = highest;
      begin = first;
    }
  }
  if (std::isinf(most)) return -1;
  return std::find(logits + begin, logits + outputs, most) - logits;
}

// `decode`, for the most probable tokens [keeps] instead of logits.
bool decode_greedily(const Decoder& d, const int64_t* tokens, const int64_t* positions, const Batch& batch,
                     const int64_t* keep, int64_t keeps, int64_t* best) {
  // Memory that a pass gets anew costs it a tenth of a millisecond for eight rows.
  thread_local std::vector<float> logits;
  const int64_t outputs = d.head.outputs, size = keeps * outputs;
  if (static_cast<int64_t>(logits.size()) < size) logits.resize(size);
  if (!decode(d, tokens, positions, batch, keep, keeps, logits.data())) return false;
  for (int64_t k = 0; k < keeps; k++) {
    const int64_t at = most_probable(&logits[k * outputs], outputs);
    best[k] = d.shortlist && at >= 0 ? d.shortlist[at] : at;
  }
  return true;
}

}  // namespace
