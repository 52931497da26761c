// AMX-INT8: a tile of rows times a tile of weights, for one block.

#pragma once

#include <cstdint>

#include "lanes.h"

#if defined(EDGECOSINE_EMULATED_TILES)
#include "emulated_tiles.h"
#define EDGECOSINE_TILES
#elif defined(__AMX_INT8__) && defined(__AMX_TILE__) && defined(__AVX512VNNI__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define EDGECOSINE_TILES
#endif

namespace {

constexpr int kTileRows = 16;                  // rows of a tile, and of a pass from which tiles are used

#ifdef EDGECOSINE_TILES

#ifndef EDGECOSINE_EMULATED_TILES
// Linux keeps the tiles of a process only after it was asked to.
inline bool ask_for_tiles() {
  constexpr long kArchReqXcompPerm = 0x1023, kXfeatureXtiledata = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtiledata) == 0;
}
#endif

// The operand of LDTILECFG: 0 has the products, 1 the inputs, 2 the weights.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {4 * kLanes, 32, 4 * kLanes};
  uint8_t rows[16] = {kTileRows, kTileRows, 8};
};
static_assert(sizeof(TileShapes) == 64);

// The tiles of this thread, while in scope.
class Tiles {
 public:
  explicit Tiles(bool is_used) : is_used_(is_used) {
    static const TileShapes shapes;
    if (is_used) _tile_loadconfig(&shapes);
  }
  ~Tiles() {
    if (is_used_) _tile_release();
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  const bool is_used_;
};

// products [rows, lanes] = inputs [rows, 8 quads], signed, times weights [8 quads, lanes], unsigned, `stride`
// bytes apart.
[[gnu::always_inline]] inline void multiply_tile(const void* inputs, const void* weights, int64_t stride,
                                                 int32_t* products) {
  asm volatile("" ::: "memory");               // the compiler does not see that a tile reads memory
  _tile_zero(0);
  _tile_loadd(1, inputs, 32);
  _tile_loadd(2, weights, stride);
  _tile_dpbsud(0, 1, 2);
  _tile_stored(0, products, 4 * kLanes);
}

// Whether a product is what its definition says.
inline bool are_tiles_right() {
  alignas(64) int8_t inputs[kTileRows][32];
  alignas(64) uint8_t weights[8][2][kLanes][4] = {};
  alignas(64) int32_t products[kTileRows][kLanes];
  uint32_t number = 1;
  const auto next = [&] { return (number = number * 1664525 + 1013904223) >> 24; };
  for (auto& row : inputs)
    for (int8_t& value : row) value = static_cast<int8_t>(next());
  for (auto& quad : weights)
    for (auto& column : quad[0])
      for (uint8_t& value : column) value = static_cast<uint8_t>(next());
  {
    const Tiles tiles(true);
    multiply_tile(inputs, weights, sizeof weights[0], products[0]);
  }
  for (int row = 0; row < kTileRows; row++)
    for (int lane = 0; lane < kLanes; lane++) {
      int32_t sum = 0;
      for (int i = 0; i < 32; i++) sum += inputs[row][i] * weights[i / 4][0][lane][i % 4];
      if (products[row][lane] != sum) return false;
    }
  return true;
}

// Why a process whose processor has tiles does not use them; null where it does.
inline const char* fault_of_tiles() {
  static const char* const fault = !ask_for_tiles()    ? "Linux refuses"
                                   : are_tiles_right() ? nullptr
                                                       : "wrong products";
  return fault;
}

inline bool has_tiles() { return !fault_of_tiles(); }

#else

inline const char* fault_of_tiles() { return nullptr; }
constexpr bool has_tiles() { return false; }

#endif

}  // namespace
