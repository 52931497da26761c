// A decoder of the Llama kind.

#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "attention.h"
#include "linear.h"

// The caller fills these structures; native_structs.py declares the same fields.
struct Weight {
  const void* packed;
  const float* bias;
  int64_t outputs, inputs, layout;
};

struct Layer {
  Weight query_key_value, output, gate_up, down;
  const float *input_norm, *middle_norm, *query_norm, *key_norm;  // the last two may be null
  void *keys, *values;                         // in cells of `cell_bytes`
  int64_t window;
};

struct Decoder {
  const Layer* layers;
  Weight head;
  const void* embedding;
  const float *output_norm, *cosine, *sine;  // cosine, sine [positions, head_size / 2]
  const int64_t* shortlist;                  // token of each output of the head, see rank.h; or null
  int64_t num_layers, hidden, heads, groups, head_size, inner, slot_size, embedding_bytes, threads;
  int64_t vocabulary, slots, cell_bytes;       // rows of the embedding, slots and format of the cache
  float epsilon, scale;
};

namespace {

// y = x / sqrt(mean(x^2) + epsilon) * weight
inline void normalize(const float* x, const float* weight, float epsilon, float* y, int64_t size) {
  const float scale = 1.0f / std::sqrt(dot(x, x, size) / static_cast<float>(size) + epsilon);
  for (int64_t i = 0; i < size; i++) y[i] = x[i] * scale * weight[i];
}

// Rotates the two halves of a head against each other (the Llama layout of rotary embeddings).
inline void rotate(float* x, const float* cosine, const float* sine, int64_t half) {
  for (int64_t i = 0; i < half; i++) {
    const float low = x[i], high = x[i + half];
    x[i] = low * cosine[i] - high * sine[i];
    x[i + half] = high * cosine[i] + low * sine[i];
  }
}

inline Vector gate_by_silu(Vector gate, Vector up) {
  return gate / (exponential(-gate) + 1.0f) * up;
}

inline void put_panels(const float* values, int64_t size, float* row, int64_t panel) {
  std::copy(values, values + size, row + panel * kPanel);
}
template <class Input>                         // of two values
void put_panels(const float* values, int64_t size, Input* row, int64_t panel) {
  convert(values, row + panel * kPanel / 2, size);
}

constexpr int64_t kTogether = 128;             // panels of gate and of up that are computed alternately

// out [rows, width] = silu(x G^T) * (x U^T), in the input form of the next layer. The two products are
// never stored whole: for ten rows they exceed a core's cache.
template <class Weight, class Out>
void gated(const float* x, const Weight* w, Out* out, int64_t width, int64_t rows, int64_t panels,
           int64_t inputs, int threads) {
  const int64_t steps = steps_of<Weight>(inputs), stride = steps * kPanel;
  const auto* in = inputs_of<Weight>(x, rows, inputs, threads);
  const int parts = parts_of(threads, panels, 2 * rows * panels * kPanel * inputs);
  Team::of_process().run(parts, [&](int part) {
    thread_local std::vector<float> gate, up;
    gate.resize(rows * kPanel * kTogether);
    up.resize(rows * kPanel * kTogether);
    const int64_t end = panels * (part + 1) / parts;
    for (int64_t panel = panels * part / parts; panel < end; panel += kTogether) {
      const int64_t count = std::min(kTogether, end - panel), size = count * kPanel;
      panels_of(0, count, rows, steps, in, w + panel * stride, gate.data(), size);
      panels_of(0, count, rows, steps, in, w + (panels + panel) * stride, up.data(), size);
      for (int64_t i = 0; i < rows * size; i += kLanes)
        store(&gate[i], gate_by_silu(load(&gate[i]), load(&up[i])));
      for (int64_t r = 0; r < rows; r++)
        put_panels(&gate[r * size], size, out + r * width, panel);
    }
  });
}

inline void linear_of(const Weight& w, const float* x, float* y, int64_t rows, int threads) {
  linear_of(static_cast<Layout>(w.layout), x, w.packed, w.bias, y, rows, w.outputs, w.inputs, threads);
}

// y = down(silu(gate(x)) * up(x)); `inner` has room for two products per row.
void feed_forward(const Layer& layer, const float* x, float* inner, float* y, int64_t rows,
                  int threads) {
  const Weight &both = layer.gate_up, &down = layer.down;
  const int64_t panels = down.inputs / kPanel;
  if (both.bias || down.inputs % kPanel) {     // gate and up are not whole panels
    linear_of(both, x, inner, rows, threads);
    for (int64_t t = 0; t < rows; t++)
      for (int64_t i = 0; i < down.inputs; i++) {
        const float* gate = inner + t * both.outputs;
        const Vector product = gate_by_silu(Vector{} + gate[i], Vector{} + gate[down.inputs + i]);
        inner[t * down.inputs + i] = product[0];
      }
    return linear_of(down, inner, y, rows, threads);
  }
  const auto run = [&](auto* weight, auto* form) {
    using Form = std::decay_t<decltype(*form)>;
    constexpr bool is_plain = std::is_same_v<Form, float>;
    const int64_t together = is_plain ? 1 : Operands<std::decay_t<decltype(*weight)>>::kInputs;
    gated(x, weight, form, down.inputs / together, rows, panels, both.inputs, threads);
    if constexpr (is_plain)
      linear_of(down, form, y, rows, threads); // the two matrices may have different layouts
    else
      linear(form, static_cast<decltype(weight)>(down.packed), down.bias, y, rows, down.outputs,
             down.inputs, threads);
  };
  if (both.layout == kFloat32) run(static_cast<const float*>(both.packed), inner);
  if (both.layout == kBfloat16) run(static_cast<const uint16_t*>(both.packed), inner);
  if (both.layout == kBytes) run(static_cast<const Bytes*>(both.packed), inner);
  if (both.layout == kWideBytes) run(static_cast<const WideBytes*>(both.packed), inner);
  if (both.layout == kNibbles) run(static_cast<const Nibbles*>(both.packed), inner);
  if (both.layout == kWideNibbles) run(static_cast<const WideNibbles*>(both.packed), inner);
#ifdef __AVX512BF16__
  if (both.layout == kPairs)
    run(static_cast<const Pair*>(both.packed), reinterpret_cast<Pair*>(inner));
  if (both.layout == kWidePairs)
    run(static_cast<const WidePair*>(both.packed), reinterpret_cast<Floats*>(inner));
#endif
}

// Whether rows stay within the embedding, the rotary tables and the cache.
bool fit(const Decoder& d, const int64_t* tokens, const int64_t* positions, const Batch& batch) {
  for (int64_t t = 0; t < batch.rows; t++)
    if (!below(tokens[t], d.vocabulary) || !below(positions[t], d.slot_size)) return false;
  return are_within(d.slots, d.slot_size, batch);
}

void embed(const Decoder& d, const int64_t* tokens, int64_t rows, float* x) {
  for (int64_t t = 0; t < rows; t++)
    for (int64_t i = 0; i < d.hidden; i++) {
      const int64_t at = tokens[t] * d.hidden + i;
      x[t * d.hidden + i] = d.embedding_bytes == 2
                                ? widen(static_cast<const uint16_t*>(d.embedding)[at])
                                : static_cast<const float*>(d.embedding)[at];
    }
}

void place_heads(const Decoder& d, const Layer& layer, const int64_t* positions, int64_t rows,
                 float* mixed) {
  const int64_t size = d.head_size, width = (d.heads + 2 * d.groups) * size, half = size / 2;
  for (int64_t t = 0; t < rows; t++)
    for (int64_t h = 0; h < d.heads + d.groups; h++) {
      float* head = mixed + t * width + h * size;
      const float* norm = h < d.heads ? layer.query_norm : layer.key_norm;
      if (norm) normalize(head, norm, d.epsilon, head, size);
      rotate(head, d.cosine + positions[t] * half, d.sine + positions[t] * half, half);
    }
}

// Runs rows through the decoder and writes logits [keeps, vocabulary] of the rows numbered in `keep`.
// Returns false, and writes nothing, where the rows do not fit.
bool decode(const Decoder& d, const int64_t* tokens, const int64_t* positions, const Batch& batch,
            const int64_t* keep, int64_t keeps, float* logits) {
  if (!fit(d, tokens, positions, batch)) return false;
  const int64_t rows = batch.rows;
  const int threads = static_cast<int>(d.threads);
  const int64_t size = d.head_size, query = d.heads * size, width = query + 2 * d.groups * size;
  thread_local std::vector<float> state, normed, mixed, inner;
  state.resize(rows * d.hidden);
  normed.resize(rows * std::max(d.hidden, query));
  mixed.resize(rows * std::max(width, d.hidden));
  inner.resize(rows * 2 * d.inner);
  const auto add = [&](const std::vector<float>& change) {
    for (int64_t i = 0; i < rows * d.hidden; i++) state[i] += change[i];
  };
  const auto normalize_rows = [&](const float* weight) {
    for (int64_t t = 0; t < rows; t++)
      normalize(&state[t * d.hidden], weight, d.epsilon, &normed[t * d.hidden], d.hidden);
  };
  embed(d, tokens, rows, state.data());
  for (int64_t l = 0; l < d.num_layers; l++) {
    const Layer& layer = d.layers[l];
    normalize_rows(layer.input_norm);
    linear_of(layer.query_key_value, normed.data(), mixed.data(), rows, threads);
    place_heads(d, layer, positions, rows, mixed.data());
    const Shape shape{d.heads, d.groups, size, size, d.slot_size, width, size,        width,
                      size,    width,    size, d.scale, 0.0f,     layer.window};
    by_cell(d.cell_bytes, [&](auto* cell) {
      using Cell = decltype(cell);
      attention(shape, mixed.data(), mixed.data() + query, mixed.data() + query + d.groups * size,
                static_cast<Cell>(layer.keys), static_cast<Cell>(layer.values), batch, nullptr,
                normed.data(), threads);
    });
    linear_of(layer.output, normed.data(), mixed.data(), rows, threads);
    add(mixed);
    normalize_rows(layer.middle_norm);
    feed_forward(layer, normed.data(), inner.data(), mixed.data(), rows, threads);
    add(mixed);
  }
  for (int64_t k = 0; k < keeps; k++)
    normalize(&state[keep[k] * d.hidden], d.output_norm, d.epsilon, &normed[k * d.hidden], d.hidden);
  linear_of(d.head, normed.data(), logits, keeps, threads);
  return true;
}

}  // namespace
