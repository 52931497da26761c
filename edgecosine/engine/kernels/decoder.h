// A whole decoder of the Llama kind.

#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "attention.h"
#include "linear.h"

// The following structures are filled by the caller; field for field the same there.
struct Weight {
  const void* packed;
  const float* bias;
  int64_t outputs, inputs, layout;
};

struct Layer {
  Weight query_key_value, output, gate_up, down;
  const float *input_norm, *middle_norm, *query_norm, *key_norm;  // the last two may be null
  float *keys, *values;
  int64_t window;
};

struct Decoder {
  const Layer* layers;
  Weight head;
  const void* embedding;
  const float *output_norm, *cosine, *sine;  // cosine, sine [positions, head_size / 2]
  int64_t num_layers, hidden, heads, groups, head_size, inner, cells, embedding_bytes, threads;
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

// gate[i] = silu(gate[i]) * up[i]
inline void gate_by_silu(float* gate, const float* up, int64_t size) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const Vector x = load(gate + i);
    store(gate + i, x / (exponential(-x) + 1.0f) * load(up + i));
  }
  for (; i < size; i++) {
    const Vector x = Vector{} + gate[i];
    gate[i] = (x / (exponential(-x) + 1.0f))[0] * up[i];
  }
}

inline void linear_of(const Weight& w, const float* x, float* y, int64_t rows, int threads) {
  linear_of(static_cast<Layout>(w.layout), x, w.packed, w.bias, y, rows, w.outputs, w.inputs, threads);
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

// Runs rows through the decoder and gives logits [keeps, vocabulary] of the rows numbered in `keep`.
void decode(const Decoder& d, const int64_t* tokens, const int64_t* positions, const int32_t* slot,
            const int32_t* cell, const int32_t* length, const int32_t* path,
            const int32_t* path_length, int64_t paths, int64_t rows, const int64_t* keep,
            int64_t keeps, float* logits) {
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
    const Shape shape{d.heads, d.groups, size,  size, d.cells, paths,   width,       size,
                      width,   size,     width, size, d.scale, 0.0f, layer.window};
    attention(shape, mixed.data(), mixed.data() + query, mixed.data() + query + d.groups * size,
              layer.keys, layer.values, slot, cell, length, path, path_length,
              static_cast<const float*>(nullptr), normed.data(), rows, threads);
    linear_of(layer.output, normed.data(), mixed.data(), rows, threads);
    add(mixed);
    normalize_rows(layer.middle_norm);
    linear_of(layer.gate_up, normed.data(), inner.data(), rows, threads);
    for (int64_t t = 0; t < rows; t++) {
      float* gate = &inner[t * 2 * d.inner];
      gate_by_silu(gate, gate + d.inner, d.inner);
      if (t) std::memmove(&inner[t * d.inner], gate, d.inner * sizeof(float));
    }
    linear_of(layer.down, inner.data(), mixed.data(), rows, threads);
    add(mixed);
  }
  for (int64_t k = 0; k < keeps; k++)
    normalize(&state[keep[k] * d.hidden], d.output_norm, d.epsilon, &normed[k * d.hidden], d.hidden);
  linear_of(d.head, normed.data(), logits, keeps, threads);
}

}  // namespace
