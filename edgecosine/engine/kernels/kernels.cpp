// Linear layers, attention and whole decoders whose every result depends on its own row alone.
//
// A floating-point sum depends on its order. Stock kernels choose the order by the shape of the
// whole pass, so that a token's logits change with the company it is verified in. Here the order is
// part of the definition:
//   linear     y[m, n] = (((x[m, 0] w[n, 0]) + x[m, 1] w[n, 1]) + ...): one chain of fused
//              multiply-adds along k, whatever the number of rows, threads or vector lanes.
//   attention  keys and values are walked by position in the sequence, wherever their cells lie in
//              the cache, so that a branch of a tree and the same tokens in a chain give equal bits.
// Weights are float32, or bfloat16 widened exactly; sums are float32.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

#ifdef __AVX512F__
constexpr int kLanes = 16;
constexpr int kMostRows = 12;                  // sums that fit the registers beside two columns
#else
constexpr int kLanes = 8;
constexpr int kMostRows = 6;
#endif
constexpr int kPanel = 2 * kLanes;             // output columns that are packed side by side
constexpr int64_t kDepth = 128;                // inputs per block, so that a panel stays in cache
constexpr int64_t kAhead = 2048;               // bytes to prefetch ahead of the weights in use

typedef float Vector __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef float LooseVector __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t LooseInts __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

inline float widen(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint16_t narrow(float value) {          // round to nearest even, as torch does
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline Vector load(const float* p) { return *reinterpret_cast<const LooseVector*>(p); }


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

inline Vector load(const uint16_t* p) {
  Vector v;
  for (int i = 0; i < kLanes; i++) v[i] = widen(p[i]);
  return v;
}

inline void store(float* p, Vector v) { *reinterpret_cast<LooseVector*>(p) = v; }

inline float scalar(const float* p) { return *p; }
inline float scalar(const uint16_t* p) { return widen(*p); }
inline void put(float* p, float v) { *p = v; }
inline void put(uint16_t* p, float v) { *p = narrow(v); }

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
  const int parts = static_cast<int>(std::min<int64_t>(threads, panels));
#pragma omp parallel for num_threads(parts) schedule(static, 1) if (parts > 1)
  for (int part = 0; part < parts; part++)
    panels_of(panels * part / parts, panels * (part + 1) / parts, rows, depth, in, w, out, width);
  if (direct && !bias) return;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t n = 0; n < outputs; n++)
      put(y + r * outputs + n, bias ? out[r * width + n] + bias[n] : out[r * width + n]);
}

// exp(x) by range reduction and a degree-6 polynomial; every lane by itself.
inline Vector exponential(Vector x) {
  x = x < -87.0f ? Vector{} - 87.0f : x;
  x = x > 88.0f ? Vector{} + 88.0f : x;
  const Vector scaled = x * 1.44269504088896341f;
  const Vector half = scaled < 0.0f ? Vector{} - 0.5f : Vector{} + 0.5f;
  const Ints power = __builtin_convertvector(scaled + half, Ints);
  const Vector whole = __builtin_convertvector(power, Vector);
  const Vector r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
  Vector y = Vector{} + 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  return y * (Vector)((power + 127) << 23);
}

inline float total(Vector v) {
  float sum = 0;
  for (int i = 0; i < kLanes; i++) sum += v[i];
  return sum;
}

template <class Value>
float dot(const float* a, const Value* b, int64_t size) {
  Vector sum{};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) sum += load(a + i) * load(b + i);
  float rest = 0;
  for (; i < size; i++) rest += a[i] * scalar(b + i);
  return total(sum) + rest;
}

template <class Value>
void add_scaled(float* a, float scale, const Value* b, int64_t size) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(a + i, load(a + i) + scale * load(b + i));
  for (; i < size; i++) a[i] += scale * scalar(b + i);
}

struct Shape {
  int64_t heads, groups, key_size, value_size, cells, paths;
  int64_t query_row, query_head, key_row, key_head, value_row, value_head;  // strides
  float scale, softcap;
  int64_t window;
};

template <class Value>
void attend(const Shape& s, const Value* query, const Value* keys, const Value* values,
            int64_t length, const int32_t* path, int64_t path_length, const float* sink, Value* out,
            std::vector<float>& scores, std::vector<float>& scratch) {
  const int64_t visible = length + path_length;
  const int64_t begin = s.window > 0 ? std::max<int64_t>(0, visible - s.window) : 0;
  const auto cell = [&](int64_t position) {
    return position < length ? position : static_cast<int64_t>(path[position - length]);
  };
  scores.assign((visible + kLanes) / kLanes * kLanes, -INFINITY);
  scratch.assign(s.key_size + s.value_size, 0.0f);
  float* q = scratch.data();
  float* sum = q + s.key_size;
  for (int64_t i = 0; i < s.key_size; i++) q[i] = scalar(query + i) * s.scale;
  float most = sink ? *sink : -INFINITY;
  for (int64_t j = begin; j < visible; j++) {
    float score = dot(q, keys + cell(j) * s.key_size, s.key_size);
    if (s.softcap > 0) score = std::tanh(score / s.softcap) * s.softcap;
    scores[j] = score;
    most = std::max(most, score);
  }
  Vector lanes{};
  for (size_t j = 0; j < scores.size(); j += kLanes) {
    const Vector shifted = load(&scores[j]) - most;
    const Vector weight = shifted > -87.0f ? exponential(shifted) : Vector{};
    store(&scores[j], weight);
    lanes += weight;
  }
  float norm = total(lanes);
  if (sink) norm += std::exp(*sink - most);
  for (int64_t j = begin; j < visible; j++)
    add_scaled(sum, scores[j], values + cell(j) * s.value_size, s.value_size);
  for (int64_t i = 0; i < s.value_size; i++) put(out + i, sum[i] / norm);
}

template <class Value>
void attention(const Shape& s, const Value* query, const Value* new_keys, const Value* new_values,
               Value* keys, Value* values, const int32_t* slot, const int32_t* cell,
               const int32_t* length, const int32_t* path, const int32_t* path_length,
               const float* sinks, Value* out, int64_t rows, int threads) {
  const int64_t key_slot = s.groups * s.cells * s.key_size;
  const int64_t value_slot = s.groups * s.cells * s.value_size;
  for (int64_t t = 0; t < rows; t++)
    for (int64_t g = 0; g < s.groups; g++) {
      std::memcpy(keys + slot[t] * key_slot + (g * s.cells + cell[t]) * s.key_size,
                  new_keys + t * s.key_row + g * s.key_head, s.key_size * sizeof(Value));
      std::memcpy(values + slot[t] * value_slot + (g * s.cells + cell[t]) * s.value_size,
                  new_values + t * s.value_row + g * s.value_head, s.value_size * sizeof(Value));
    }
  const int64_t per_group = s.heads / s.groups;
  const int64_t work = rows * s.heads;
#pragma omp parallel num_threads(threads) if (threads > 1 && work >= 2 * threads)
  {
    std::vector<float> scores, scratch;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < work; i++) {
      const int64_t t = i / s.heads, h = i % s.heads, g = h / per_group;
      attend(s, query + t * s.query_row + h * s.query_head,
             keys + slot[t] * key_slot + g * s.cells * s.key_size,
             values + slot[t] * value_slot + g * s.cells * s.value_size, length[t],
             path + t * s.paths, path_length[t], sinks ? sinks + h : nullptr,
             out + (t * s.heads + h) * s.value_size, scores, scratch);
    }
  }
}

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

}  // namespace

// The following structures are filled by the caller; field for field the same there.
struct Weight {
  const void* packed;
  const float* bias;
  int64_t outputs, inputs, bytes;
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

inline void linear_of(const Weight& w, const float* x, float* y, int64_t rows, int threads) {
  if (w.bytes == 2)
    linear(x, static_cast<const uint16_t*>(w.packed), w.bias, y, rows, w.outputs, w.inputs, threads);
  else
    linear(x, static_cast<const float*>(w.packed), w.bias, y, rows, w.outputs, w.inputs, threads);
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

}  // namespace

namespace {

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

extern "C" {

int edgecosine_panel() { return kPanel; }

// Row-major [outputs, depth] to panels [outputs / panel, depth, panel], zero-filled at the edge.
void edgecosine_pack(const void* w, void* packed, int64_t outputs, int64_t depth, int bytes) {
  if (bytes == 2)
    pack(static_cast<const uint16_t*>(w), static_cast<uint16_t*>(packed), outputs, depth);
  else
    pack(static_cast<const float*>(w), static_cast<float*>(packed), outputs, depth);
}

// x [rows, depth], y [rows, outputs]; *_bytes is 2 for bfloat16 and 4 for float32.
void edgecosine_linear(const void* x, int x_bytes, const void* w, int w_bytes, const float* bias,
                       void* y, int y_bytes, int64_t rows, int64_t outputs, int64_t depth,
                       int threads) {
  const auto run = [&](auto* in, auto* weight, auto* out) {
    linear(in, weight, bias, out, rows, outputs, depth, threads);
  };
  const auto by_out = [&](auto* in, auto* weight) {
    y_bytes == 2 ? run(in, weight, static_cast<uint16_t*>(y)) : run(in, weight, static_cast<float*>(y));
  };
  const auto by_weight = [&](auto* in) {
    w_bytes == 2 ? by_out(in, static_cast<const uint16_t*>(w)) : by_out(in, static_cast<const float*>(w));
  };
  x_bytes == 2 ? by_weight(static_cast<const uint16_t*>(x)) : by_weight(static_cast<const float*>(x));
}

// query [rows, heads, key_size], new_keys and new_values [rows, groups, size] with the strides (in
// elements) of their first two axes; the cache [slots, groups, cells, size]. Row t writes cell[t] of
// slot[t], then attends to the first length[t] cells of it and to the path_length[t] cells that
// path[t] names, in this order.
void edgecosine_attention(const void* query, const void* new_keys, const void* new_values,
                          const int64_t* strides, void* keys, void* values, const int32_t* slot,
                          const int32_t* cell, const int32_t* length, const int32_t* path,
                          const int32_t* path_length, const float* sinks, void* out, int64_t rows,
                          int64_t heads, int64_t groups, int64_t key_size, int64_t value_size,
                          int64_t cells, int64_t paths, float scale, float softcap, int64_t window,
                          int bytes, int threads) {
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
}

// Runs rows through a whole decoder of the Llama kind and gives logits [keeps, vocabulary] of the
// rows numbered in `keep`. Rows are described as for edgecosine_attention.
void edgecosine_decode(const Decoder* decoder, const int64_t* tokens, const int64_t* positions,
                       const int32_t* slot, const int32_t* cell, const int32_t* length,
                       const int32_t* path, const int32_t* path_length, int64_t paths, int64_t rows,
                       const int64_t* keep, int64_t keeps, float* logits) {
  const Decoder& d = *decoder;
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

}
