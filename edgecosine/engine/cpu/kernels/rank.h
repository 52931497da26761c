// The most probable draft tokens: the highest logits, or the highest sums of logits and shared noise.

#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "lanes.h"

namespace {

typedef uint64_t Words __attribute__((vector_size(kLanes * 8)));

// log(x) of positive normal numbers: exponent and a polynomial of the mantissa, about 1e-7 relative.
inline Vector logarithm(Vector x) {
  const Ints bits = (Ints)x;
  Ints exponent = (bits >> 23) - 126;
  Vector m = (Vector)((bits & 0x007fffff) | 0x3f000000);             // 0.5 to 1
  const Ints is_low = m < 0.707106781186547524f;                     // all ones where true
  exponent += is_low;
  m = m + (Vector)(is_low & (Ints)m) - 1.0f;
  const Vector square = m * m;
  Vector y = Vector{} + 7.0376836292e-2f;
  y = y * m - 1.1514610310e-1f;
  y = y * m + 1.1676998740e-1f;
  y = y * m - 1.2420140846e-1f;
  y = y * m + 1.4249322787e-1f;
  y = y * m - 1.6668057665e-1f;
  y = y * m + 2.0000714765e-1f;
  y = y * m - 2.4999993993e-1f;
  y = y * m + 3.3333331174e-1f;
  const Vector whole = __builtin_convertvector(exponent, Vector);
  return m * square * y - 0.5f * square + m + whole * 0.693147180559945f;
}

// Constants of SplitMix64 (Steele et al., 2014); gumbel.py has the same.
constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;
constexpr uint64_t kFirst = 0xBF58476D1CE4E5B9u, kSecond = 0x94D049BB133111EBu;

// The Gumbel noise of gumbel.py for the tokens of outputs `first`, `first` + 1, ..., from the upper 24
// of its 52 bits. Without a list of tokens, output i is token i.
inline Vector noise(uint64_t key, const int64_t* tokens, int64_t first) {
  Words x;
  for (int i = 0; i < kLanes; i++)
    x[i] = static_cast<uint64_t>(tokens ? tokens[first + i] : first + i);
  x = x * kGolden + key;
  x = (x ^ (x >> 30)) * kFirst;
  x = (x ^ (x >> 27)) * kSecond;
  x = x ^ (x >> 31);
  const Ints top = __builtin_convertvector(x >> 40, Ints);
  const Vector uniform = (__builtin_convertvector(top, Vector) + 0.5f) * 0x1p-24f;
  return -logarithm(-logarithm(uniform));
}

inline float highest_of(const std::vector<float>& scores) {
  Vector most = Vector{} - INFINITY;
  for (size_t i = 0; i < scores.size(); i += kLanes) {
    const Vector score = load(&scores[i]);
    most = score > most ? score : most;
  }
  float highest = most[0];
  for (int i = 1; i < kLanes; i++) highest = std::max(highest, most[i]);
  return highest;
}

// Ranks outputs by scores[i] = logits[i] * inverse_temperature (+ noise). Writes the tokens of the `best`
// highest ones in descending order, equal ones by ascending output, and their shares exp(score) / sum of
// exp(scores). `shortlist` has the token of each output, padded to a multiple of the lanes, or is null.
void rank(const float* logits, int64_t outputs, const int64_t* shortlist, float inverse_temperature,
          bool is_noisy, uint64_t key, int64_t best, int64_t* tokens, float* shares) {
  thread_local std::vector<float> scores;
  scores.assign((outputs + kLanes - 1) / kLanes * kLanes, -INFINITY);
  std::copy(logits, logits + outputs, scores.data());
  for (int64_t i = 0; i < outputs; i += kLanes) {
    Vector score = load(&scores[i]) * inverse_temperature;
    if (is_noisy) score += noise(key, shortlist, i);
    store(&scores[i], score);
  }
  const float first = highest_of(scores);
  Vector sum{};
  for (int64_t i = 0; i < outputs; i += kLanes) {
    const Vector shifted = load(&scores[i]) - first;
    sum += shifted > -87.0f ? exponential(shifted) : Vector{};
  }
  for (int64_t b = 0; b < best; b++) {
    const float score = b ? highest_of(scores) : first;
    const int64_t at = std::find(scores.begin(), scores.end(), score) - scores.begin();
    const int64_t output = std::min(at, outputs - 1);  // NaN is never found
    tokens[b] = shortlist ? shortlist[output] : output;
    shares[b] = std::exp(score - first) / total(sum);
    scores[output] = -INFINITY;
  }
}

}  // namespace
