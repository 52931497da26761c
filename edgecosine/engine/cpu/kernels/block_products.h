// Products of weights in blocks with inputs rounded to 8 bits.
//
// Products are summed exactly in integers; the sum of each block is scaled and added in float32, in the
// order of the blocks. So all instruction sets give equal results.

#pragma once

#include "blocks.h"
#include "prefetch.h"

namespace {

#if defined(__AVX512VNNI__)
constexpr const char* kInstructions = "AVX512-VNNI";
#elif defined(__AVX512BW__)
#define EDGECOSINE_PAIRS_OF_BYTES
constexpr const char* kInstructions = "AVX512";
#elif defined(__AVX512F__)
constexpr const char* kInstructions = "portable";
#elif defined(__AVXVNNI__)
constexpr const char* kInstructions = "AVX-VNNI";
#elif defined(__AVX2__)
#define EDGECOSINE_PAIRS_OF_BYTES
constexpr const char* kInstructions = "AVX2";
#else
constexpr const char* kInstructions = "portable";
#endif

// Their names in this process.
inline const char* instructions() { return has_tiles() ? "AVX512-VNNI+AMX-INT8" : kInstructions; }

#if defined(__AVX512BW__)
typedef __m512i Integers;
inline Integers products_of_pairs(Integers w, int32_t quad) {
  return _mm512_maddubs_epi16(w, _mm512_set1_epi32(quad));
}
inline Integers signed_products_of_pairs(Integers w, int32_t quad) {
  const Integers inputs = _mm512_set1_epi32(quad);
  const Integers moved = _mm512_mask_sub_epi8(inputs, _mm512_movepi8_mask(w), Integers{}, inputs);
  return _mm512_maddubs_epi16(_mm512_abs_epi8(w), moved);
}
inline Integers add_pairs(Integers a, Integers b) { return _mm512_add_epi16(a, b); }
inline Integers folded_pairs(Integers pairs) { return _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)); }
#elif defined(__AVX2__)
typedef __m256i Integers;
inline Integers products_of_pairs(Integers w, int32_t quad) {
  return _mm256_maddubs_epi16(w, _mm256_set1_epi32(quad));
}
inline Integers signed_products_of_pairs(Integers w, int32_t quad) {
  return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(_mm256_set1_epi32(quad), w));
}
inline Integers add_pairs(Integers a, Integers b) { return _mm256_add_epi16(a, b); }
inline Integers folded_pairs(Integers pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
#endif

// The exact sums of a block for one row: started, added to for each quad, and finished.
template <class Form>
struct ExactSum {
  Ints sum;

#ifdef EDGECOSINE_PAIRS_OF_BYTES
  // The instruction adds pairs of products in 16 bits. With nibbles a whole block fits in them; with bytes
  // a pair does once the signs of the weights are moved to the inputs.
  void start(const int32_t*, int) { sum = Ints{}; }

  static Ints prepared(Ints column) {
    return Form::kHasMinimum ? column : column ^ static_cast<int32_t>(0x80808080u);
  }

  [[gnu::always_inline]] void add(Ints column, int32_t quad) {
    if constexpr (Form::kHasMinimum)
      sum = (Ints)add_pairs((Integers)sum, products_of_pairs((Integers)column, quad));
    else
      sum += (Ints)folded_pairs(signed_products_of_pairs((Integers)column, quad));
  }

  Vector finished() const {
    const Ints whole = Form::kHasMinimum ? (Ints)folded_pairs((Integers)sum) : sum;
    return __builtin_convertvector(whole, Vector);
  }
#else
  void start(const int32_t* unbias, int row) { sum = Ints{} + (Form::kHasMinimum ? 0 : unbias[row]); }

  static Ints prepared(Ints column) { return column; }

  // + the products of four unsigned bytes of each lane with the four signed bytes of `quad`.
  [[gnu::always_inline]] void add(Ints column, int32_t quad) {
#if defined(__AVX512VNNI__)
    sum = (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)column, _mm512_set1_epi32(quad));
#elif defined(__AVXVNNI__)
    sum = (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)column, _mm256_set1_epi32(quad));
#else
    for (int i = 0; i < 4; i++)
      sum += ((column >> 8 * i) & 0xff) * static_cast<int32_t>(static_cast<int8_t>(quad >> 8 * i));
#endif
  }

  Vector finished() const { return __builtin_convertvector(sum, Vector); }
#endif
};

inline float number(const int32_t* words, int word) {
  float value;
  std::memcpy(&value, words + word, 4);
  return value;
}

// The outputs of a panel for a group of rows. An input is loaded for two columns at a time, since a
// processor loads at most as many inputs as it multiplies.
template <int Rows, class Form>
void multiply_panel(const RoundedInputs* group, const Panel<Form>& panel, float* c, int64_t ldc,
                    int64_t steps, Ahead ahead) {
  Vector sums[Rows][2];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; r++) sums[r][0] = sums[r][1] = Vector{};
  for (int64_t k = 0; k < steps; k++) {
    ahead.fetch_all(k);
    const int32_t* words = group[k * Rows].words;
    ExactSum<Form> exact[Rows][2];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; r++)
      for (int half = 0; half < 2; half++) exact[r][half].start(words + kUnbias * Rows, r);
#pragma GCC unroll 4
    for (int i = 0; i < kQuads / 2; i++) {
      Ints columns[2][2];
#pragma GCC unroll 2
      for (int half = 0; half < 2; half++) {
        panel.load(k, half, i, columns[0][half], columns[1][half]);
        for (Ints(&two)[2] : columns) two[half] = ExactSum<Form>::prepared(two[half]);
      }
#pragma GCC unroll 2
      for (int quad = 0; quad < 2; quad++)
#pragma GCC unroll 8
        for (int r = 0; r < Rows; r++)
#pragma GCC unroll 2
          for (int half = 0; half < 2; half++)
            exact[r][half].add(columns[quad][half], words[(2 * i + quad) * Rows + r]);
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      const Vector scales = load_halves(panel.scales(k, half));
#pragma GCC unroll 8
      for (int r = 0; r < Rows; r++)
        sums[r][half] = fused(exact[r][half].finished(), scales * number(words, kScale * Rows + r),
                              sums[r][half]);
      if constexpr (Form::kHasMinimum) {
        const Vector minima = load_halves(panel.minima(k, half));
#pragma GCC unroll 8
        for (int r = 0; r < Rows; r++)
          sums[r][half] = fused(minima, Vector{} + number(words, kSum * Rows + r), sums[r][half]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; r++)
    for (int half = 0; half < 2; half++) store(c + r * ldc + half * kLanes, sums[r][half]);
}

// The same with float32 inputs, slowly.
template <int Rows, class Form>
void multiply_panel(const WideInputs* group, const Panel<Form>& panel, float* c, int64_t ldc,
                    int64_t steps, Ahead) {
  for (int half = 0; half < 2; half++) {
    for (int r = 0; r < Rows; r++) store(c + r * ldc + half * kLanes, Vector{});
    for (int64_t k = 0; k < steps; k++) {
      const Vector scales = load_halves(panel.scales(k, half));
      const Vector minima = Form::kHasMinimum ? load_halves(panel.minima(k, half)) : Vector{};
      for (int64_t i = 0; i < kBlock; i++) {
        Ints quads[2];
        panel.load(k, half, i / 8, quads[0], quads[1]);
        const Ints whole = (quads[i / 4 % 2] >> 8 * (i % 4)) & 0xff;
        const Vector weight =
            fused(__builtin_convertvector(whole - (Form::kHasMinimum ? 0 : kBias), Vector), scales, minima);
        for (int r = 0; r < Rows; r++) {
          float* at = c + r * ldc + half * kLanes;
          store(at, load(at) + group[k * Rows + r].values[i] * weight);
        }
      }
    }
  }
}

#ifdef EDGECOSINE_TILES
// The same with rows in a tile. The next block is multiplied before the sums of a block are added, since they
// come late.
template <int Rows, class Form>
void multiply_panel_by_tiles(const RoundedInputs* group, const Panel<Form>& panel, float* c, int64_t ldc,
                             int64_t steps, Ahead ahead) {
  alignas(64) int32_t products[2][kTileRows * kLanes];
  for (int half = 0; half < 2; half++) {
    const auto multiply = [&](int64_t k) {
      const void* inputs = group[k * kTileRows].words;
      if constexpr (Form::kHasMinimum) {
        alignas(64) Ints quads[kQuads];
        for (int i = 0; i < kQuads / 2; i++) panel.load(k, half, i, quads[2 * i], quads[2 * i + 1]);
        multiply_tile(inputs, quads, sizeof(Ints), products[k % 2]);
      } else {
        multiply_tile(inputs, panel.quads(k) + half * sizeof(Ints), 2 * sizeof(Ints), products[k % 2]);
      }
    };
    Vector sums[Rows];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; r++) sums[r] = Vector{};
    multiply(0);
    for (int64_t k = 0; k < steps; k++) {
      if (half == 0) ahead.fetch_all(k);
      if (k + 1 < steps) multiply(k + 1);
      const int32_t* words = group[k * kTileRows].words;
      const Vector scales = load_halves(panel.scales(k, half));
      const Vector minima = Form::kHasMinimum ? load_halves(panel.minima(k, half)) : Vector{};
#pragma GCC unroll 16
      for (int r = 0; r < Rows; r++) {
        const Ints exact = *reinterpret_cast<const LooseInts*>(products[k % 2] + r * kLanes);
        const int32_t unbias = Form::kHasMinimum ? 0 : words[kUnbias * kTileRows + r];
        sums[r] = fused(__builtin_convertvector(exact + unbias, Vector),
                        scales * number(words, kScale * kTileRows + r), sums[r]);
        if constexpr (Form::kHasMinimum)
          sums[r] = fused(minima, Vector{} + number(words, kSum * kTileRows + r), sums[r]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; r++) store(c + r * ldc + half * kLanes, sums[r]);
  }
}

template <int Rows, class Form, class... Arguments>
void multiply_panel_by_tiles_of(int64_t rows, const RoundedInputs* group, const Panel<Form>& panel,
                                Arguments... arguments) {
  if (rows == Rows) return multiply_panel_by_tiles<Rows, Form>(group, panel, arguments...);
  if constexpr (Rows > kTileRows / 2)
    multiply_panel_by_tiles_of<Rows - 1>(rows, group, panel, arguments...);
}
#endif

template <int Rows, class Input, class Form, class... Arguments>
void multiply_panel_of(int64_t rows, const Input* group, const Panel<Form>& panel,
                       Arguments... arguments) {
  if (rows == Rows) return multiply_panel<Rows, Form>(group, panel, arguments...);
  if constexpr (Rows > 1) multiply_panel_of<Rows - 1>(rows, group, panel, arguments...);
}

constexpr int64_t kRowsNear = 128;             // rows whose inputs stay in the second cache

// Rows whose products take less time than the memory sends weights; the processor's own prefetching is then
// quicker.
template <class Form> constexpr int64_t kFewRows = Form::kHasMinimum ? 2 : 4;

// Weights that a group prefetches while it multiplies a panel: its part of those that come next.
template <class Form>
Ahead next_weights(const Panel<Form>& panel, int64_t steps, int64_t rows, int64_t group, int64_t groups) {
  const int64_t bytes = Panel<Form>::kBlockBytes, pace = rows > kFewRows<Form> ? bytes / groups : 0;
  const int64_t distance = groups == 1 ? kAhead : steps * bytes;
  return {reinterpret_cast<const char*>(panel.blocks) + distance + group * pace * steps, pace, false};
}

// Panels begin to end of the outputs of all rows.
template <class Form, class Input>
void multiply_panels(int64_t begin, int64_t end, int64_t rows, int64_t steps, const Input* x,
                     const Form* w, float* c, int64_t ldc) {
  const RowGroups groups = row_groups_of<Form>(rows);
#ifdef EDGECOSINE_TILES
  const Tiles tiles(groups.are_tiles);
#endif
  const int64_t near = kRowsNear / (groups.are_tiles ? kTileRows : kMostBlockRows);
  for (int64_t first = 0; first < groups.count; first += near) {
    const int64_t last = std::min(groups.count, first + near);
    for (int64_t number = begin; number < end; number++) {
      const Panel<Form> panel(w + number * steps * kPanel);
      for (int64_t g = first; g < last; g++) {
        const Input* group = x + groups.place(g) * steps;
        float* out = c + groups.begin(g) * ldc + number * kPanel;
        const Ahead ahead = next_weights(panel, steps, rows, g - first, last - first);
#ifdef EDGECOSINE_TILES
        if constexpr (std::is_same_v<Input, RoundedInputs>)
          if (groups.are_tiles) {
            multiply_panel_by_tiles_of<kTileRows>(groups.size(g), group, panel, out, ldc, steps, ahead);
            continue;
          }
#endif
        multiply_panel_of<kMostBlockRows>(groups.size(g), group, panel, out, ldc, steps, ahead);
      }
    }
  }
}

}  // namespace
