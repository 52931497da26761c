// Linear layers, attention and decoders in which each result depends on its own row alone.
//
// A floating-point sum depends on its order. Stock kernels choose the order by the shape of the whole
// pass, so the logits of a token change with the rows that share its pass. Here the order is fixed:
//   linear     y[m, n] = (((x[m, 0] w[n, 0]) + x[m, 1] w[n, 1]) + ...): one chain of fused
//              multiply-adds along k for any number of rows, threads or vector lanes. With weights in
//              pairs, one chain of dot products of two, on inputs rounded to bfloat16. With weights in
//              blocks, an exact sum for each block, and one chain over the blocks.
//   attention  keys and values are added by position in the sequence, at any KV position of the cache, so
//              a branch of a tree and the same tokens in a chain give equal bits.
// Weights are float32, or bfloat16 widened exactly; sums are float32.
#include "attention.h"
#include "decoder.h"
#include "draft_tree.h"
#include "greedy.h"
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

// The instructions that multiply bytes, by name; "portable" without any.
const char* edgecosine_instructions() { return instructions(); }

// Why tiles that the processor has are not used, or null.
const char* edgecosine_fault_of_tiles() { return fault_of_tiles(); }

// Asks for large pages for memory that is not touched yet.
void edgecosine_prefer_huge_pages(void* memory, int64_t bytes) { prefer_huge_pages(memory, bytes); }

// Bytes [outputs, blocks * 32] and their float16 scales [outputs, blocks] to panels. With minima [outputs,
// blocks], the bytes are nibbles from 0 to 15.
void edgecosine_pack_blocks(const int8_t* bytes, const uint16_t* scales, const uint16_t* minima,
                            void* packed, int64_t outputs, int64_t blocks) {
  if (minima)
    pack_blocks(bytes, scales, minima, static_cast<Nibbles*>(packed), outputs, blocks);
  else
    pack_blocks(bytes, scales, minima, static_cast<Bytes*>(packed), outputs, blocks);
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
// elements) of their first two axes; keys and values of the cache [slots, groups, slot_size, cells of a
// row]. The rows are described at `Batch`. Returns 0, and writes nothing, where a row lies beyond the cache.
int edgecosine_attention(const void* query, const void* new_keys, const void* new_values,
                         const int64_t* strides, void* keys, void* values, const int32_t* slot,
                         const int32_t* kv_position, const int32_t* length, const int32_t* path,
                         const int32_t* path_length, const float* sinks, void* out, int64_t rows,
                         int64_t heads, int64_t groups, int64_t key_size, int64_t value_size,
                         int64_t slots, int64_t slot_size, int64_t paths, float scale, float softcap,
                         int64_t window, int bytes, int cell_bytes, int threads) {
  const Batch batch{slot, kv_position, length, path, path_length, paths, rows};
  if (!are_within(slots, slot_size, batch)) return 0;
  const Shape shape{heads,      groups,     key_size,   value_size, slot_size,
                    strides[0], strides[1], strides[2], strides[3], strides[4],
                    strides[5], scale,      softcap,    window};
  by_cell(cell_bytes, [&](auto* cell) {
    using Cell = decltype(cell);
    attention(shape, {query, bytes}, {new_keys, bytes}, {new_values, bytes}, static_cast<Cell>(keys),
              static_cast<Cell>(values), batch, sinks, {out, bytes}, threads);
  });
  return 1;
}

// Runs rows through a whole decoder and writes logits [keeps, vocabulary] of the rows numbered in
// `keep`. Returns 0, and writes nothing, where the rows do not fit.
int edgecosine_decode(const Decoder* decoder, const int64_t* tokens, const int64_t* positions,
                      const int32_t* slot, const int32_t* kv_position, const int32_t* length,
                      const int32_t* path, const int32_t* path_length, int64_t paths, int64_t rows,
                      const int64_t* keep, int64_t keeps, float* logits) {
  const Batch batch{slot, kv_position, length, path, path_length, paths, rows};
  return decode(*decoder, tokens, positions, batch, keep, keeps, logits);
}

// The same, for the token of the highest logit of each of these rows; -1 where its logits are not finite.
int edgecosine_decode_greedily(const Decoder* decoder, const int64_t* tokens, const int64_t* positions,
                               const int32_t* slot, const int32_t* kv_position, const int32_t* length,
                               const int32_t* path, const int32_t* path_length, int64_t paths,
                               int64_t rows, const int64_t* keep, int64_t keeps, int64_t* best) {
  const Batch batch{slot, kv_position, length, path, path_length, paths, rows};
  return decode_greedily(*decoder, tokens, positions, batch, keep, keeps, best);
}

// The most probable draft tokens after each row of logits [rows, vocabulary]: tokens and shares [rows,
// best]. keys[row] is the noise's key where is_noisy[row].
void edgecosine_rank(const float* logits, int64_t rows, int64_t vocabulary,
                     const float* inverse_temperatures, const uint8_t* is_noisy, const uint64_t* keys,
                     int64_t best, int64_t* tokens, float* shares) {
  for (int64_t r = 0; r < rows; r++)
    rank(logits + r * vocabulary, vocabulary, nullptr, inverse_temperatures[r], is_noisy[r], keys[r],
         best, tokens + r * best, shares + r * best);
}

// One step of drafting for `count` works in one forward pass; returns its rows, or -1 where they do not
// fit.
int64_t edgecosine_draft_step(const Decoder* decoder, DraftWork* works, int64_t count) {
  return draft_step(*decoder, works, count);
}

// Writes the sizes and constants of `shared_values` in native_structs.py, in its order, as far as `count`
// goes; returns how many there are.
int64_t edgecosine_shared_values(int64_t* values, int64_t count) {
  const int64_t found[] = {
      sizeof(Weight), sizeof(Layer), sizeof(Decoder), sizeof(Nodes), sizeof(DraftWork),
      kTreeCapacity, kChildren, static_cast<int64_t>(kMostNll), kRoot, kUnread, kNoNode, kBlock,
      kFloat32, kBfloat16, kPairs, kWidePairs, kBytes, kWideBytes,
      kNibbles, kWideNibbles,
      static_cast<int64_t>(kGolden), static_cast<int64_t>(kFirst), static_cast<int64_t>(kSecond)};
  const int64_t size = sizeof found / sizeof *found;
  std::copy(found, found + std::min(count, size), values);
  return size;
}

}
