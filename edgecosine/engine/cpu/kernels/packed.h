// Weights in panels of output columns: the layouts, and one multiplication step for each.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "lanes.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

constexpr int kPanel = 2 * kLanes;             // output columns of a panel
#ifdef __AVX512F__
constexpr int kMostRows = 8;                   // rows whose sums fit in registers beside two columns
#else
constexpr int kMostRows = 6;
#endif

// As `WeightLayout` in native_structs.py. Wide layouts are multiplied with float32 inputs.
enum Layout : int64_t {
  kFloat32 = 0,
  kBfloat16 = 1,
  kPairs = 2,
  kWidePairs = 3,
  kBytes = 4,
  kWideBytes = 5,
  kNibbles = 6,
  kWideNibbles = 7,
};

// Two inputs of one output column in bfloat16, the operand of a dot-product instruction.
struct Pair {
  uint16_t first, second;
};
struct WidePair {
  uint16_t first, second;
};
struct Floats {
  float first, second;
};
struct Vectors {
  Vector first, second;
};

// The operands of a layout: the type of an input, of a vector of weights, and the number of inputs per
// step.
template <class Weight> struct Operands {
  using Input = float;
  using Column = Vector;
  static constexpr int64_t kInputs = 1;
};

inline void load_columns(const float* p, Vector& low, Vector& high) {
  low = load(p);
  high = load(p + kLanes);
}

// A lane of packed bfloat16 has one column in its low half and the column kLanes further in its high
// half, so a shift and a mask widen both.
inline void load_columns(const uint16_t* p, Vector& low, Vector& high) {
  const Ints both = *reinterpret_cast<const LooseInts*>(p);
  low = (Vector)(both << 16);
  high = (Vector)(both & static_cast<int32_t>(0xffff0000u));
}

inline void multiply_add(Vector& sum, float input, Vector column) { sum += input * column; }

#ifdef __AVX512BF16__
template <> struct Operands<Pair> {
  using Input = Pair;
  using Column = __m512bh;
  static constexpr int64_t kInputs = 2;
};

inline void load_columns(const Pair* p, __m512bh& low, __m512bh& high) {
  low = (__m512bh)_mm512_loadu_si512(p);
  high = (__m512bh)_mm512_loadu_si512(p + kLanes);
}

inline void multiply_add(Vector& sum, Pair input, __m512bh column) {
  int32_t both;
  std::memcpy(&both, &input, 4);
  sum = (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(both), column);
}

template <> struct Operands<WidePair> {
  using Input = Floats;
  using Column = Vectors;
  static constexpr int64_t kInputs = 2;
};

inline void load_columns(const WidePair* p, Vectors& low, Vectors& high) {
  load_columns(reinterpret_cast<const uint16_t*>(p), low.first, low.second);
  load_columns(reinterpret_cast<const uint16_t*>(p + kLanes), high.first, high.second);
}

inline void multiply_add(Vector& sum, Floats input, const Vectors& column) {
  sum += input.first * column.first;
  sum += input.second * column.second;
}
#endif

// Rows are multiplied in groups of about equal size.
inline int64_t groups_of(int64_t rows) { return (rows + kMostRows - 1) / kMostRows; }

// Steps along the inputs; the last one is padded with zeros.
template <class Weight>
int64_t steps_of(int64_t inputs) {
  return (inputs + Operands<Weight>::kInputs - 1) / Operands<Weight>::kInputs;
}

inline void convert(const float* x, float* y, int64_t size) { std::copy(x, x + size, y); }
inline void convert(const uint16_t* x, float* y, int64_t size) {
  for (int64_t i = 0; i < size; i++) y[i] = widen(x[i]);
}
inline void convert(const float* x, Pair* y, int64_t size) {
  uint16_t* out = &y->first;
  for (int64_t i = 0; i < size; i++) out[i] = narrow(x[i]);
}
inline void convert(const uint16_t* x, Pair* y, int64_t size) { std::memcpy(y, x, 2 * size); }
template <class Act>
void convert(const Act* x, Floats* y, int64_t size) { convert(x, &y->first, size); }

// Rows [rows, inputs] converted to the input type of a layout, [rows, steps].
template <class Weight, class Act>
const typename Operands<Weight>::Input* rows_of(const Act* x, int64_t rows, int64_t inputs) {
  using Input = typename Operands<Weight>::Input;
  if constexpr (std::is_same_v<Act, Input>) {
    return x;
  } else {
    thread_local std::vector<Input> form;
    const int64_t steps = steps_of<Weight>(inputs);
    form.assign(rows * steps, Input{});
    for (int64_t r = 0; r < rows; r++) convert(x + r * inputs, &form[r * steps], inputs);
    return form.data();
  }
}

// Every forward pass reads all weights; large pages avoid most of the address translations.
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

// Row-major [outputs, inputs] to panels [outputs / panel, steps, panel], zero-filled at the edges.
template <class Value>
void pack(const Value* w, Value* packed, int64_t outputs, int64_t inputs, Layout layout) {
  const int64_t together = layout == kPairs ? 2 : 1, steps = (inputs + together - 1) / together;
  const size_t size = (outputs + kPanel - 1) / kPanel * kPanel * steps * together * sizeof(Value);
  prefer_huge_pages(packed, size);
  std::memset(packed, 0, size);
  for (int64_t n = 0; n < outputs; n++) {
    int64_t column = n % kPanel;
    if (layout == kBfloat16) column = column % kLanes * 2 + column / kLanes;
    Value* panel = packed + n / kPanel * steps * kPanel * together;
    for (int64_t k = 0; k < inputs; k++)
      panel[(k / together * kPanel + column) * together + k % together] = w[n * inputs + k];
  }
}

}  // namespace
