// Weights of 8 and 4 bits in blocks of 32 inputs: their layouts, and inputs rounded to 8 bits.
//
// A block of a column has a float16 scale, with 4 bits also a float16 minimum; a block of a row has a
// float32 scale. block_products.h multiplies them.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "packed.h"
#include "team.h"
#include "tiles.h"

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

constexpr int64_t kBlock = 32;                 // inputs that share a scale
constexpr int kQuads = kBlock / 4;             // groups of four inputs, which one lane multiplies in one step
constexpr int kBias = 128;                     // added to bytes, since the instructions take them unsigned
constexpr int64_t kRoundingWork = 8;           // products in the time of rounding an input
#ifdef __AVX512F__
constexpr int kMostBlockRows = 8;              // rows whose exact sums fit in registers beside two columns
#else
constexpr int kMostBlockRows = 4;
#endif

// The size of a column's part of a block: bytes that hold weight + kBias, or nibbles, whose weight is
// minimum + scale * nibble. The data of columns are interleaved, so a column's data is not in its own struct.
struct Bytes {
  uint8_t data[2 + kBlock];
  static constexpr bool kHasMinimum = false;
};
struct Nibbles {
  uint8_t data[2 + 2 + kBlock / 2];
  static constexpr bool kHasMinimum = true;
};
struct WideBytes : Bytes {};
struct WideNibbles : Nibbles {};

// The columns of a panel over all steps, block after block. Blocks follow each other without a gap over
// all panels: processors recognise one distance between reads, and prefetch by it.
template <class Form>
struct Panel {
  static constexpr int64_t kBlockBytes = kPanel * sizeof(Form);
  const uint8_t* blocks;

  explicit Panel(const Form* panel) : blocks(panel->data) {}

  // In a block, the scales come first, then the minima, then the quads, each in two halves of kLanes columns.
  const uint8_t* scales(int64_t step, int half) const {
    return blocks + step * kBlockBytes + half * 2 * kLanes;
  }
  const uint8_t* minima(int64_t step, int half) const { return scales(step, half) + 2 * kPanel; }
  const uint8_t* quads(int64_t step) const {
    return scales(step, 0) + (Form::kHasMinimum ? 4 : 2) * kPanel;
  }

  // The quads 2 * i and 2 * i + 1 of half a block. A vector of nibbles has one in its low halves and the
  // next one in its high halves.
  void load(int64_t step, int half, int i, Ints& low, Ints& high) const {
    const auto vector = [&](int number) {
      return *reinterpret_cast<const LooseInts*>(quads(step) + (2 * number + half) * kLanes * 4);
    };
    if constexpr (Form::kHasMinimum) {
      low = vector(i) & 0x0f0f0f0f;
      high = (vector(i) >> 4) & 0x0f0f0f0f;
    } else {
      low = vector(2 * i);
      high = vector(2 * i + 1);
    }
  }
};

// The size of a row's part of a block. Rows that are multiplied together form a group, in which the
// numbers of all rows are interleaved; in a tile, each row has its quads one after the other.
struct RoundedInputs {
  int32_t words[kQuads + 3];
};
struct WideInputs {
  float values[kBlock];
};
enum InputWord { kScale = kQuads, kUnbias, kSum };  // after the quads

template <class Weight> constexpr bool kIsBlock = false;
template <> constexpr bool kIsBlock<Bytes> = true;
template <> constexpr bool kIsBlock<Nibbles> = true;
template <> constexpr bool kIsBlock<WideBytes> = true;
template <> constexpr bool kIsBlock<WideNibbles> = true;

template <> struct Operands<Bytes> {
  using Input = RoundedInputs;
  static constexpr int64_t kInputs = kBlock;
};
template <> struct Operands<WideBytes> {
  using Input = WideInputs;
  static constexpr int64_t kInputs = kBlock;
};
template <> struct Operands<Nibbles> : Operands<Bytes> {};
template <> struct Operands<WideNibbles> : Operands<WideBytes> {};

// The rows of a pass in groups of about equal size. A group has `room` rows in memory, which a tile fills
// only in part where it has fewer.
struct RowGroups {
  int64_t rows;
  bool are_tiles;
  int64_t count;

  int64_t begin(int64_t group) const { return rows * group / count; }
  int64_t size(int64_t group) const { return begin(group + 1) - begin(group); }
  int64_t room(int64_t group) const { return are_tiles ? kTileRows : size(group); }
  int64_t place(int64_t group) const { return are_tiles ? kTileRows * group : begin(group); }
};

template <class Weight>
RowGroups row_groups_of(int64_t rows) {
  const bool is_rounded = std::is_same_v<typename Operands<Weight>::Input, RoundedInputs>;
  const bool are_tiles = is_rounded && rows >= kTileRows && has_tiles();
  const int64_t most = are_tiles ? kTileRows : kMostBlockRows;
  return {rows, are_tiles, (rows + most - 1) / most};
}

inline float from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u || magnitude < 0x0400u) {
    const float small = static_cast<float>(magnitude) * 0x1p-24f;
    const float value = magnitude < 0x0400u ? small : magnitude == 0x7c00u ? INFINITY : NAN;
    return sign ? -value : value;
  }
  const uint32_t bits = sign | ((magnitude << 13) + (112u << 23));
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// a * b + c, rounded once under all compiler flags.
inline Vector fused(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
  return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  for (int i = 0; i < kLanes; i++) c[i] = std::fma(a[i], b[i], c[i]);
  return c;
#endif
}

inline Vector load_halves(const uint8_t* p) {
#if defined(__AVX512F__)
  return (Vector)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return (Vector)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vector v;
  for (int i = 0; i < kLanes; i++) {
    uint16_t half;
    std::memcpy(&half, p + 2 * i, 2);
    v[i] = from_half(half);
  }
  return v;
#endif
}

typedef int8_t Octets __attribute__((vector_size(kLanes)));
constexpr float kWholes = 12582912.0f;         // 1.5 * 2^23: adding it rounds a float32 to an integer

// The block of row `row` in a group with room for `rows`: its quads, its scale, what the bias of bytes adds
// to its sums, negated, and the sum of the rounded inputs.
inline void put_block(const float* x, RoundedInputs* group, int64_t row, int64_t rows, bool is_tile) {
  constexpr int kVectors = kBlock / kLanes;
  Ints most{};                                 // as bits, where NaN is the greatest
  for (int v = 0; v < kVectors; v++) {
    const Ints size = (Ints)load(x + v * kLanes) & 0x7fffffff;
    most = size > most ? size : most;
  }
  const float largest = greatest(most);
  const float inverse = largest == 0 ? 0.0f : 127.0f / largest;
  int8_t bytes[kBlock];
  Ints sum{};
  for (int v = 0; v < kVectors; v++) {
    const Vector raised = fused(load(x + v * kLanes), Vector{} + inverse, Vector{} + kWholes);
    const Ints whole = __builtin_convertvector(raised - kWholes, Ints);
    const Octets octets = __builtin_convertvector(whole, Octets);
    std::memcpy(bytes + v * kLanes, &octets, kLanes);
    sum += whole;
  }
  int32_t* words = group->words + row;
  if (is_tile)
    std::memcpy(group->words + row * kQuads, bytes, kBlock);
  else
    for (int q = 0; q < kQuads; q++) std::memcpy(words + q * rows, bytes + 4 * q, 4);
  const float scale = largest / 127.0f;
  const float whole_sum = total(__builtin_convertvector(sum, Vector)), rounded_sum = scale * whole_sum;
  std::memcpy(words + kScale * rows, &scale, 4);
  std::memcpy(words + kSum * rows, &rounded_sum, 4);
  words[kUnbias * rows] = -kBias * static_cast<int32_t>(whole_sum);
}

inline void put_block(const float* x, WideInputs* group, int64_t row, int64_t, bool) {
  std::memcpy(group + row, x, sizeof *group);
}

// Rows [rows, inputs] in groups, each with its blocks in order.
template <class Weight, class Act>
const typename Operands<Weight>::Input* grouped_inputs(const Act* x, int64_t rows, int64_t inputs,
                                                       int threads) {
  using Input = typename Operands<Weight>::Input;
  thread_local std::vector<Input> form;
  const int64_t steps = steps_of<Weight>(inputs);
  const RowGroups groups = row_groups_of<Weight>(rows);
  form.resize(groups.place(groups.count) * steps);
  Input* blocks = form.data();
  const int parts = parts_of(threads, groups.count, rows * inputs * kRoundingWork);
  Team::of_process().run(parts, [&](int part) {
    for (int64_t g = groups.count * part / parts; g < groups.count * (part + 1) / parts; g++) {
      const int64_t room = groups.room(g);
      for (int64_t r = 0; r < groups.size(g); r++)
        for (int64_t k = 0; k < steps; k++) {
          const Act* from = x + (groups.begin(g) + r) * inputs + k * kBlock;
          Input* group = blocks + groups.place(g) * steps + k * room;
          const int64_t count = inputs - k * kBlock;
          if constexpr (std::is_same_v<Act, float>)
            if (count >= kBlock) {
              put_block(from, group, r, room, groups.are_tiles);
              continue;
            }
          float block[kBlock] = {};
          convert(from, block, std::min(kBlock, count));
          put_block(block, group, r, room, groups.are_tiles);
        }
    }
  });
  return blocks;
}

// Bytes [outputs, steps * block] and their scales [outputs, steps] to panels, zero-filled at the edges.
// Nibbles have one byte each as well, and minima [outputs, steps].
template <class Form>
void pack_blocks(const int8_t* bytes, const uint16_t* scales, const uint16_t* minima, Form* packed,
                 int64_t outputs, int64_t steps) {
  const int64_t panels = (outputs + kPanel - 1) / kPanel;
  prefer_huge_pages(packed, panels * steps * kPanel * sizeof(Form));
  std::memset(packed, 0, panels * steps * kPanel * sizeof(Form));
  for (int64_t n = 0; n < outputs; n++) {
    const int half = static_cast<int>(n % kPanel / kLanes);
    const int64_t column = n % kLanes;
    const Panel<Form> panel(packed + n / kPanel * steps * kPanel);
    const auto at = [&](const uint8_t* p, int64_t i) { return const_cast<uint8_t*>(p) + i; };
    for (int64_t k = 0; k < steps; k++) {
      std::memcpy(at(panel.scales(k, half), 2 * column), scales + n * steps + k, 2);
      if (Form::kHasMinimum)
        std::memcpy(at(panel.minima(k, half), 2 * column), minima + n * steps + k, 2);
      uint8_t* quads = at(panel.quads(k), (half * kLanes + column) * 4);
      for (int64_t i = 0; i < kBlock; i++) {
        const int64_t quad = i / 4, value = bytes[(n * steps + k) * kBlock + i];
        if (Form::kHasMinimum)
          quads[quad / 2 * kPanel * 4 + i % 4] |= value << 4 * (quad % 2);
        else
          quads[quad * kPanel * 4 + i % 4] = static_cast<uint8_t>(value + kBias);
      }
    }
  }
}

}  // namespace
