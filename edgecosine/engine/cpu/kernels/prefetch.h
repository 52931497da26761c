// Prefetching of weights.

#pragma once

#include <cstdint>

namespace {

constexpr int64_t kAhead = 8192;               // bytes from the weights in use to those prefetched
constexpr int64_t kLine = 64;                  // bytes of a cache line
constexpr int64_t kNearRows = 6;               // rows whose products take less time than a fetch from L2

// Weights to prefetch: from `at`, `pace` bytes further at every step.
struct Ahead {
  const char* at;
  int64_t pace;
  bool is_near;                                // into the L1 cache, else into L2

  // Two lines of a step.
  void fetch(int64_t step) const {
    const char* line = at + step * pace;
    if (is_near) {
      __builtin_prefetch(line, 0, 3);
      __builtin_prefetch(line + kLine, 0, 3);
    } else {
      __builtin_prefetch(line, 0, 2);
      __builtin_prefetch(line + kLine, 0, 2);
    }
  }

  // All lines of a step, into L2.
  [[gnu::always_inline]] void fetch_all(int64_t step) const {
    const char* line = at + step * pace;
    for (int64_t i = 0; i < pace; i += kLine) __builtin_prefetch(line + i, 0, 2);
  }
};

}  // namespace
