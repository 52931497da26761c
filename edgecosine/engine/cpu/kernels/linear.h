// Linear layers on packed weights.

#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "block_products.h"

namespace {

constexpr int64_t kDepth = 128;                // steps per block, so that a panel stays in cache

// Rows x panels of outputs over `steps` of inputs; continues from c unless `first`.
template <int Rows, int Panels, class Weight, class Input = typename Operands<Weight>::Input>
void micro(const Input* x, int64_t ldx, const Weight* w, int64_t panel_stride, float* c,
           int64_t ldc, int64_t steps, bool first, Ahead ahead) {
  constexpr int kVectors = 2 * Panels;
  Vector sum[Rows][kVectors];
  for (int r = 0; r < Rows; r++)
    for (int v = 0; v < kVectors; v++)
      sum[r][v] = first ? Vector{} : load(c + r * ldc + v * kLanes);
  for (int64_t k = 0; k < steps; k++) {
    if (Panels == 1) ahead.fetch(k);
    typename Operands<Weight>::Column column[kVectors];
#pragma GCC unroll 4
    for (int p = 0; p < Panels; p++) {
      const Weight* at = w + p * panel_stride + k * kPanel;
      load_columns(at, column[2 * p], column[2 * p + 1]);
    }
#pragma GCC unroll 12
    for (int r = 0; r < Rows; r++) {
      const Input value = x[r * ldx + k];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; v++) multiply_add(sum[r][v], value, column[v]);
    }
  }
  for (int r = 0; r < Rows; r++)
    for (int v = 0; v < kVectors; v++) store(c + r * ldc + v * kLanes, sum[r][v]);
}

template <int Rows, class Input, class Weight, class... Arguments>
void micro_of(int64_t rows, const Input* x, int64_t ldx, const Weight* w, Arguments... arguments) {
  if (rows == Rows) return micro<Rows, 1, Weight>(x, ldx, w, arguments...);
  if constexpr (Rows > 1) micro_of<Rows - 1>(rows, x, ldx, w, arguments...);
}

template <class Weight, class Act>
const typename Operands<Weight>::Input* inputs_of(const Act* x, int64_t rows, int64_t inputs,
                                                  int threads) {
  if constexpr (kIsBlock<Weight>)
    return grouped_inputs<Weight>(x, rows, inputs, threads);
  else
    return rows_of<Weight>(x, rows, inputs);
}

template <class Weight, class Input, std::enable_if_t<kIsBlock<Weight>, int> = 0>
void panels_of(int64_t begin, int64_t end, int64_t rows, int64_t steps, const Input* x,
               const Weight* w, float* c, int64_t ldc) {
  multiply_panels<Weight>(begin, end, rows, steps, x, w, c, ldc);
}

template <class Weight, class Input, std::enable_if_t<!kIsBlock<Weight>, int> = 0>
void panels_of(int64_t begin, int64_t end, int64_t rows, int64_t steps, const Input* x,
               const Weight* w, float* c, int64_t ldc) {
  const int64_t stride = steps * kPanel, step_bytes = kPanel * sizeof(Weight);
  const int64_t blocks = groups_of(rows);
  int64_t panel = begin;
  if (rows == 1)                               // for one row, several panels hide the latency of additions
    for (; panel + 4 <= end; panel += 4)
      micro<1, 4, Weight>(x, steps, w + panel * stride, stride, c + panel * kPanel, ldc, steps, true, {});
  for (; panel < end; panel++)
    for (int64_t k = 0; k < steps; k += kDepth)
      for (int64_t b = 0; b < blocks; b++) {   // blocks of about equal height
        const int64_t row = rows * b / blocks;
        // Every block of rows prefetches its part of the next weights.
        const char* here = reinterpret_cast<const char*>(w + panel * stride + k * kPanel);
        const int64_t next = blocks == 1 ? kAhead : kDepth * step_bytes * (blocks + b) / blocks;
        micro_of<kMostRows>(rows * (b + 1) / blocks - row, x + row * steps + k, steps,
                            w + panel * stride + k * kPanel, stride, c + row * ldc + panel * kPanel,
                            ldc, std::min(kDepth, steps - k), k == 0,
                            Ahead{here + next, step_bytes / blocks, rows <= kNearRows});
      }
}

template <class Weight, class Act, class Out>
void linear(const Act* x, const Weight* w, const float* bias, Out* y, int64_t rows, int64_t outputs,
            int64_t inputs, int threads) {
  const int64_t panels = (outputs + kPanel - 1) / kPanel, width = panels * kPanel;
  thread_local std::vector<float> wide_y;
  const auto* in = inputs_of<Weight>(x, rows, inputs, threads);
  const bool direct = std::is_same_v<Out, float> && width == outputs;
  if (!direct) wide_y.resize(rows * width);
  float* out = direct ? reinterpret_cast<float*>(y) : wide_y.data();
  const int parts = parts_of(threads, panels, rows * width * inputs);
  Team::of_process().run(parts, [&](int part) {
    panels_of(panels * part / parts, panels * (part + 1) / parts, rows, steps_of<Weight>(inputs), in, w,
              out, width);
  });
  if (direct && !bias) return;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t n = 0; n < outputs; n++)
      put(y + r * outputs + n, bias ? out[r * width + n] + bias[n] : out[r * width + n]);
}

// The same with the layout known at run time.
template <class Act, class Out>
void linear_of(Layout layout, const Act* x, const void* w, const float* bias, Out* y, int64_t rows,
               int64_t outputs, int64_t inputs, int threads) {
  const auto run = [&](auto* weight) {
    linear(x, weight, bias, y, rows, outputs, inputs, threads);
  };
  if (layout == kFloat32) run(static_cast<const float*>(w));
  if (layout == kBfloat16) run(static_cast<const uint16_t*>(w));
  if (layout == kBytes) run(static_cast<const Bytes*>(w));
  if (layout == kWideBytes) run(static_cast<const WideBytes*>(w));
  if (layout == kNibbles) run(static_cast<const Nibbles*>(w));
  if (layout == kWideNibbles) run(static_cast<const WideNibbles*>(w));
#ifdef __AVX512BF16__
  if (layout == kPairs) run(static_cast<const Pair*>(w));
  if (layout == kWidePairs) run(static_cast<const WidePair*>(w));
#endif
}

}  // namespace
