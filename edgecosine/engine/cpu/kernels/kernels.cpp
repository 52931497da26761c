// Linear layers, attention and whole decoders whose every result depends on its own row alone.
//
// A floating-point sum depends on its order. Stock kernels choose the order by the shape of the
// whole pass, so that a token's logits change with the company it is verified in. Here the order is
// part of the definition:
//   linear     y[m, n] = (((x[m, 0] w[n, 0]) + x[m, 1] w[n, 1]) + ...): one chain of fused
//              multiply-adds along k, whatever the number of rows, threads or vector lanes. With
//              weights in pairs, one chain of dot products of two, on inputs rounded to bfloat16.
//   attention  keys and values are walked by position in the sequence, wherever their cells lie in
//              the cache, so that a branch of a tree and the same tokens in a chain give equal bits.
// Weights are float32, or bfloat16 widened exactly; sums are float32.
#include "attention.h"
#include "decoder.h"
#include "growth.h"
#include "linear.h"
#include "rank.h"

extern "C" {

int edgecosine_panel() { return kPanel; }

// Whether this processor multiplies bfloat16 pairs.
int edgecosine_has_pairs() {
#ifdef __AVX512BF16__
  return 1;
#else
  return 0;
#endif
}

// Whether this processor has units that multiply bytes.
int edgecosine_has_bytes() {
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
  return 1;
#else
  return 0;
#endif
}

// Asks for large pages for memory that is not touched yet.
void edgecosine_prefer_huge_pages(void* memory, int64_t bytes) { prefer_huge_pages(memory, bytes); }

// Bytes [outputs, blocks * 32] and their float16 scales [outputs, blocks] to panels.
void edgecosine_pack_blocks(const int8_t* bytes, const uint16_t* scales, void* packed, int64_t outputs,
                            int64_t blocks) {
  pack_blocks(bytes, scales, static_cast<Bytes*>(packed), outputs, blocks);
}

// Row-major [outputs, inputs] to panels [outputs / panel, steps, panel], zero-filled at the edges.
void edgecosine_pack(const void* w, void* packed, int64_t outputs, int64_t inputs, int64_t layout) {
  const auto form = static_cast<Layout>(layout);
  if (form == kFloat32)
    pack(static_cast<const float*>(w), static_cast<float*>(packed), outputs, inputs, form);
  else
    pack(static_cast<const uint16_t*>(w), static_cast<uint16_t*>(packed), outputs, inputs, form);
}

// x [rows, inputs], y [rows, outputs]; *_bytes is 2 for bfloat16 and 4 for float32.
void edgecosine_linear(const void* x, int x_bytes, const void* w, int64_t layout, const float* bias,
                       void* y, int y_bytes, int64_t rows, int64_t outputs, int64_t inputs,
                       int threads) {
  const auto run = [&](auto* in, auto* out) {
    linear_of(static_cast<Layout>(layout), in, w, bias, out, rows, outputs, inputs, threads);
  };
  const auto by_out = [&](auto* in) {
    y_bytes == 2 ? run(in, static_cast<uint16_t*>(y)) : run(in, static_cast<float*>(y));
  };
  x_bytes == 2 ? by_out(static_cast<const uint16_t*>(x)) : by_out(static_cast<const float*>(x));
}

// query [rows, heads, key_size], new_keys and new_values [rows, groups, size] with the strides (in
// elements) of their first two axes; the cache [slots, groups, cells, size]. Row t writes cell[t] of
// slot[t], then attends to the first length[t] cells of it and to the path_length[t] cells that
// path[t] names, in this order. Returns 0, and does nothing, where a row lies beyond the cache.
int edgecosine_attention(const void* query, const void* new_keys, const void* new_values,
                         const int64_t* strides, void* keys, void* values, const int32_t* slot,
                         const int32_t* cell, const int32_t* length, const int32_t* path,
                         const int32_t* path_length, const float* sinks, void* out, int64_t rows,
                         int64_t heads, int64_t groups, int64_t key_size, int64_t value_size,
                         int64_t slots, int64_t cells, int64_t paths, float scale, float softcap,
                         int64_t window, int bytes, int threads) {
  if (!are_within(slots, cells, slot, cell, length, path, path_length, paths, rows)) return 0;
  const Shape shape{heads,      groups,     key_size,   value_size, cells,
                    paths,      strides[0], strides[1], strides[2], strides[3],
                    strides[4], strides[5], scale,      softcap,    window};
  const auto run = [&](auto zero) {
    using Value = decltype(zero);
    attention(shape, static_cast<const Value*>(query), static_cast<const Value*>(new_keys),
              static_cast<const Value*>(new_values), static_cast<Value*>(keys),
              static_cast<Value*>(values), slot, cell, length, path, path_length, sinks,
              static_cast<Value*>(out), rows, threads);
  };
  bytes == 2 ? run(uint16_t{}) : run(float{});
  return 1;
}

// Runs rows through a whole decoder and gives logits [keeps, vocabulary] of the rows numbered in
// `keep`. Rows are described as for edgecosine_attention. Returns 0 where they do not fit.
int edgecosine_decode(const Decoder* decoder, const int64_t* tokens, const int64_t* positions,
                      const int32_t* slot, const int32_t* cell, const int32_t* length,
                      const int32_t* path, const int32_t* path_length, int64_t paths, int64_t rows,
                      const int64_t* keep, int64_t keeps, float* logits) {
  return decode(*decoder, tokens, positions, slot, cell, length, path, path_length, paths, rows,
                keep, keeps, logits);
}

// The best guesses of rows of logits [rows, vocabulary]: tokens and shares [rows, best]. keys[row] is
// the noise's key where is_noisy[row].
void edgecosine_rank(const float* logits, int64_t rows, int64_t vocabulary,
                     const float* inverse_temperatures, const uint8_t* is_noisy, const uint64_t* keys,
                     int64_t best, int64_t* tokens, float* shares) {
  for (int64_t r = 0; r < rows; r++)
    rank(logits + r * vocabulary, vocabulary, nullptr, inverse_temperatures[r], is_noisy[r], keys[r],
         best, tokens + r * best, shares + r * best);
}

// One step of drafting for `count` works in one pass; returns its rows, or -1 where they do not fit.
int64_t edgecosine_grow(const Decoder* decoder, Growing* works, int64_t count) {
  return grow(*decoder, works, count);
}

}
