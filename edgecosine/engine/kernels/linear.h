// Linear layers on packed weights.

#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "lanes.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

#ifdef __AVX512F__
constexpr int kMostRows = 12;                  // sums that fit the registers beside two columns
#else
constexpr int kMostRows = 6;
#endif
constexpr int kPanel = 2 * kLanes;             // output columns that are packed side by side
constexpr int64_t kDepth = 128;                // inputs per block, so that a panel stays in cache
constexpr int64_t kThreadWork = 1 << 20;       // products that are worth another thread
constexpr int64_t kAhead = 2048;               // bytes to prefetch ahead of the weights in use

// Two vectors of weights. A lane of packed bfloat16 holds a column in its low half and the column
// kLanes further in its high half, so that widening both takes a shift and a mask.
inline void load_pair(const float* p, Vector& low, Vector& high) {
  low = load(p);
  high = load(p + kLanes);
}

inline void load_pair(const uint16_t* p, Vector& low, Vector& high) {
  const Ints both = *reinterpret_cast<const LooseInts*>(p);
  low = (Vector)(both << 16);
  high = (Vector)(both & static_cast<int32_t>(0xffff0000u));
}
// Rows x panels of outputs over `depth` inputs; continues from c unless `first`.
template <int Rows, int Panels, class Weight>
void micro(const float* x, int64_t ldx, const Weight* w, int64_t panel_stride, float* c,
           int64_t ldc, int64_t depth, bool first, int64_t ahead) {
  constexpr int kVectors = 2 * Panels;
  Vector sum[Rows][kVectors];
  for (int r = 0; r < Rows; r++)
    for (int v = 0; v < kVectors; v++)
      sum[r][v] = first ? Vector{} : load(c + r * ldc + v * kLanes);
  for (int64_t k = 0; k < depth; k++) {
    Vector column[kVectors];
#pragma GCC unroll 4
    for (int p = 0; p < Panels; p++) {
      const Weight* at = w + p * panel_stride + k * kPanel;
      if (Panels == 1) __builtin_prefetch(reinterpret_cast<const char*>(at) + ahead);
      load_pair(at, column[2 * p], column[2 * p + 1]);
    }
#pragma GCC unroll 12
    for (int r = 0; r < Rows; r++) {
      const float value = x[r * ldx + k];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; v++) sum[r][v] += value * column[v];
    }
  }
  for (int r = 0; r < Rows; r++)
    for (int v = 0; v < kVectors; v++) store(c + r * ldc + v * kLanes, sum[r][v]);
}

template <int Rows, class... Arguments>
void micro_of(int64_t rows, Arguments... arguments) {
  if (rows == Rows) return micro<Rows, 1>(arguments...);
  if constexpr (Rows > 1) micro_of<Rows - 1>(rows, arguments...);
}

template <class Weight>
void panels_of(int64_t begin, int64_t end, int64_t rows, int64_t depth, const float* x,
               const Weight* w, float* c, int64_t ldc) {
  const int64_t stride = depth * kPanel;
  const int64_t blocks = (rows + kMostRows - 1) / kMostRows;
  int64_t panel = begin;
  if (rows == 1)                               // one row: several panels hide the add latency
    for (; panel + 4 <= end; panel += 4)
      micro<1, 4>(x, depth, w + panel * stride, stride, c + panel * kPanel, ldc, depth, true, 0);
  for (; panel < end; panel++)
    for (int64_t k = 0; k < depth; k += kDepth)
      for (int64_t b = 0; b < blocks; b++) {   // blocks of equal height, not a full one and a rest
        const int64_t row = rows * b / blocks;
        // The last block of rows finds its weights in cache and fetches the next ones meanwhile.
        const bool is_last = b > 0 && b + 1 == blocks;
        const int64_t ahead = is_last ? kDepth * kPanel * static_cast<int64_t>(sizeof(Weight)) : kAhead;
        micro_of<kMostRows>(rows * (b + 1) / blocks - row, x + row * depth + k, depth,
                            w + panel * stride + k * kPanel, stride, c + row * ldc + panel * kPanel,
                            ldc, std::min(kDepth, depth - k), k == 0, ahead);
      }
}

template <class Weight, class Act, class Out>
void linear(const Act* x, const Weight* w, const float* bias, Out* y, int64_t rows, int64_t outputs,
            int64_t depth, int threads) {
  const int64_t panels = (outputs + kPanel - 1) / kPanel, width = panels * kPanel;
  thread_local std::vector<float> wide_x, wide_y;
  const float* in;
  if constexpr (std::is_same_v<Act, float>) {
    in = x;
  } else {
    wide_x.resize(rows * depth);
    for (int64_t i = 0; i < rows * depth; i++) wide_x[i] = widen(x[i]);
    in = wide_x.data();
  }
  const bool direct = std::is_same_v<Out, float> && width == outputs;
  if (!direct) wide_y.resize(rows * width);
  float* out = direct ? reinterpret_cast<float*>(y) : wide_y.data();
  const int64_t work = rows * width * depth;
  const int parts = static_cast<int>(std::min<int64_t>({threads, panels, 1 + work / kThreadWork}));
#pragma omp parallel for num_threads(parts) schedule(static, 1) if (parts > 1)
  for (int part = 0; part < parts; part++)
    panels_of(panels * part / parts, panels * (part + 1) / parts, rows, depth, in, w, out, width);
  if (direct && !bias) return;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t n = 0; n < outputs; n++)
      put(y + r * outputs + n, bias ? out[r * width + n] + bias[n] : out[r * width + n]);
}

inline int64_t place(const float*, int64_t column) { return column; }
inline int64_t place(const uint16_t*, int64_t column) {
  return column % kLanes * 2 + column / kLanes;
}

// Weights are read from end to end in every pass; large pages spare most of the address lookups.
inline void prefer_huge_pages(void* memory, size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

template <class Weight>
void pack(const Weight* w, Weight* packed, int64_t outputs, int64_t depth) {
  const int64_t panels = (outputs + kPanel - 1) / kPanel;
  prefer_huge_pages(packed, panels * kPanel * depth * sizeof(Weight));
  std::memset(packed, 0, panels * kPanel * depth * sizeof(Weight));
  for (int64_t n = 0; n < outputs; n++)
    for (int64_t k = 0; k < depth; k++)
      packed[((n / kPanel) * depth + k) * kPanel + place(w, n % kPanel)] = w[n * depth + k];
}

}  // namespace
