// Weights of 8 bits in blocks of 32 inputs, multiplied with inputs rounded to 8 bits.
//
// A block of a column has a float16 scale, a block of a row a float32 scale. Products are summed exactly
// in integers; the sum of each block is scaled and added in float32, in the order of the blocks. So all
// instruction sets give equal results.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "packed.h"

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

constexpr int64_t kBlock = 32;                 // inputs that share a scale
constexpr int kQuads = kBlock / 4;             // groups of four inputs, which one lane multiplies in one step
constexpr int kBias = 128;                     // added to weights, since the instructions take them unsigned

// The size of a column's part of a block. A panel has its scales first, then its quads, so the data of a
// column is not in its own struct.
struct Bytes {
  uint8_t data[2 + kBlock];
};
struct WideBytes {
  uint8_t data[2 + kBlock];
};

// The size of a row's part of a block. Rows that are multiplied together form a group, in which the
// numbers of all rows are interleaved.
struct RoundedInputs {
  int32_t words[kQuads + 2];
};
struct WideInputs {
  float values[kBlock];
};

template <class Weight> constexpr bool kIsBlock = false;
template <> constexpr bool kIsBlock<Bytes> = true;
template <> constexpr bool kIsBlock<WideBytes> = true;

template <> struct Operands<Bytes> {
  using Input = RoundedInputs;
  static constexpr int64_t kInputs = kBlock;
};
template <> struct Operands<WideBytes> {
  using Input = WideInputs;
  static constexpr int64_t kInputs = kBlock;
};

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

// sum + the products of four unsigned bytes of each lane with the four signed bytes of `quad`.
inline Ints multiply_add_bytes(Ints sum, Ints column, int32_t quad) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)column, _mm512_set1_epi32(quad));
#elif defined(__AVXVNNI__)
  return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)column, _mm256_set1_epi32(quad));
#else
  const auto input = [&](int i) { return static_cast<int32_t>(static_cast<int8_t>(quad >> 8 * i)); };
#if defined(__AVX2__) && !defined(__AVX512F__)
  const auto pair = [&](int i) { return (input(i) & 0xffff) | (input(i + 2) << 16); };
  const Ints even = column & 0x00ff00ff, odd = (column >> 8) & 0x00ff00ff;
  sum += (Ints)_mm256_madd_epi16((__m256i)even, _mm256_set1_epi32(pair(0)));
  return sum + (Ints)_mm256_madd_epi16((__m256i)odd, _mm256_set1_epi32(pair(1)));
#else
  for (int i = 0; i < 4; i++) sum += ((column >> 8 * i) & 0xff) * input(i);
  return sum;
#endif
#endif
}

typedef int8_t Octets __attribute__((vector_size(kLanes)));
constexpr float kWholes = 12582912.0f;         // 1.5 * 2^23: adding it rounds a float32 to an integer

// The block of row `row` in a group of `rows`: its quads, its scale, and what the bias of the weights
// adds to its sums, negated.
inline void put_block(const float* x, RoundedInputs* group, int64_t row, int64_t rows) {
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
  for (int q = 0; q < kQuads; q++) std::memcpy(words + q * rows, bytes + 4 * q, 4);
  const float scale = largest / 127.0f;
  std::memcpy(words + kQuads * rows, &scale, 4);
  words[(kQuads + 1) * rows] =
      -kBias * static_cast<int32_t>(total(__builtin_convertvector(sum, Vector)));
}

inline void put_block(const float* x, WideInputs* group, int64_t row, int64_t) {
  std::memcpy(group + row, x, sizeof *group);
}

// Rows [rows, inputs] in groups, each with its blocks in order.
template <class Weight, class Act>
const typename Operands<Weight>::Input* grouped_inputs(const Act* x, int64_t rows, int64_t inputs) {
  using Input = typename Operands<Weight>::Input;
  thread_local std::vector<Input> form;
  const int64_t steps = steps_of<Weight>(inputs), groups = groups_of(rows);
  form.resize(rows * steps);
  for (int64_t g = 0; g < groups; g++) {
    const int64_t begin = rows * g / groups, size = rows * (g + 1) / groups - begin;
    for (int64_t r = 0; r < size; r++)
      for (int64_t k = 0; k < steps; k++) {
        const Act* from = x + (begin + r) * inputs + k * kBlock;
        Input* group = &form[begin * steps + k * size];
        const int64_t count = inputs - k * kBlock;
        if constexpr (std::is_same_v<Act, float>)
          if (count >= kBlock) {
            put_block(from, group, r, size);
            continue;
          }
        float block[kBlock] = {};
        convert(from, block, std::min(kBlock, count));
        put_block(block, group, r, size);
      }
  }
  return form.data();
}

inline Ints load_quad(const uint8_t* block, int quad, int half) {
  const uint8_t* at = block + 2 * kPanel + (quad * kPanel + half * kLanes) * 4;
  return *reinterpret_cast<const LooseInts*>(at);
}

// Adds a block of a group to sums [rows, panel] in memory, which leaves the registers to the exact sums
// of all rows.
template <int Rows>
void add_block(const RoundedInputs* group, const Bytes* w, float* sums) {
  const int32_t* words = group->words;
  const uint8_t* block = w->data;
  Ints low[Rows], high[Rows];
  for (int r = 0; r < Rows; r++) low[r] = high[r] = Ints{} + words[(kQuads + 1) * Rows + r];
#pragma GCC unroll 8
  for (int q = 0; q < kQuads; q++) {
    const Ints first = load_quad(block, q, 0), second = load_quad(block, q, 1);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; r++) {
      low[r] = multiply_add_bytes(low[r], first, words[q * Rows + r]);
      high[r] = multiply_add_bytes(high[r], second, words[q * Rows + r]);
    }
  }
  const Vector first = load_halves(block), second = load_halves(block + 2 * kLanes);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; r++) {
    float scale;
    std::memcpy(&scale, words + kQuads * Rows + r, 4);
    float* sum = sums + r * kPanel;
    const Vector one = __builtin_convertvector(low[r], Vector);
    const Vector other = __builtin_convertvector(high[r], Vector);
    store(sum, fused(one, first * scale, load(sum)));
    store(sum + kLanes, fused(other, second * scale, load(sum + kLanes)));
  }
}

template <int Rows>
void add_block(const WideInputs* group, const WideBytes* w, float* sums) {
  for (int half = 0; half < 2; half++) {
    const Vector scale = load_halves(w->data + 2 * half * kLanes);
    for (int r = 0; r < Rows; r++) {
      float* at = sums + r * kPanel + half * kLanes;
      Vector sum = load(at);
      for (int i = 0; i < kBlock; i++) {
        const Ints bytes = (load_quad(w->data, i / 4, half) >> 8 * (i % 4)) & 0xff;
        sum += group[r].values[i] * (__builtin_convertvector(bytes - kBias, Vector) * scale);
      }
      store(at, sum);
    }
  }
}

// The outputs of a panel for a group of rows.
template <int Rows, class Weight, class Input = typename Operands<Weight>::Input>
void multiply_group(const Input* group, const Weight* w, float* c, int64_t ldc, int64_t steps) {
  // Rows of c may collide in the processor cache, so the sums have memory of their own.
  alignas(64) float sums[Rows * kPanel] = {};
  for (int64_t k = 0; k < steps; k++) {
    add_block<Rows>(group + k * Rows, w + k * kPanel, sums);
    asm volatile("" : : "r"(sums) : "memory");  // keeps the sums in memory
  }
  for (int r = 0; r < Rows; r++) std::memcpy(c + r * ldc, sums + r * kPanel, sizeof(float) * kPanel);
}

template <int Rows, class Input, class Weight, class... Arguments>
void multiply_group_of(int64_t rows, const Input* group, const Weight* w, Arguments... arguments) {
  if (rows == Rows) return multiply_group<Rows, Weight>(group, w, arguments...);
  if constexpr (Rows > 1) multiply_group_of<Rows - 1>(rows, group, w, arguments...);
}

// Bytes [outputs, steps * block] and their scales [outputs, steps] to panels, zero-filled at the edges.
inline void pack_blocks(const int8_t* bytes, const uint16_t* scales, Bytes* packed, int64_t outputs,
                        int64_t steps) {
  const int64_t panels = (outputs + kPanel - 1) / kPanel;
  prefer_huge_pages(packed, panels * steps * kPanel * sizeof(Bytes));
  std::memset(packed, 0, panels * steps * kPanel * sizeof(Bytes));
  for (int64_t n = 0; n < outputs; n++)
    for (int64_t k = 0; k < steps; k++) {
      const int64_t column = n % kPanel;
      uint8_t* block = packed[(n / kPanel * steps + k) * kPanel].data;
      std::memcpy(block + 2 * column, scales + n * steps + k, 2);
      for (int64_t i = 0; i < kBlock; i++)
        block[2 * kPanel + (i / 4 * kPanel + column) * 4 + i % 4] =
            static_cast<uint8_t>(bytes[(n * steps + k) * kBlock + i] + kBias);
    }
}

}  // namespace
