// Tiles in portable C++, by Intel's manual, for the test of the kernels that use them.

#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {
namespace emulated {  // not shared by the libraries of a process

bool is_allowed = true;                        // what Linux answers
bool is_right = true;                          // else weights are taken as signed
std::atomic<int> num_loads{0}, num_releases{0};

struct Shapes {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
thread_local Shapes shapes;
thread_local uint8_t tiles[8][16][64];

inline void demand(bool holds) {               // where a processor raises an exception
  if (!holds) std::abort();
}

inline void load_shapes(const void* from) {
  std::memcpy(&shapes, from, sizeof shapes);
  demand(shapes.palette == 1 && shapes.start_row == 0);
  for (uint8_t byte : shapes.reserved) demand(byte == 0);
  for (int i = 0; i < 16; i++) {
    demand(i < 8 || (shapes.rows[i] == 0 && shapes.row_bytes[i] == 0));
    demand(shapes.rows[i] <= 16 && shapes.row_bytes[i] <= 64);
    demand((shapes.rows[i] == 0) == (shapes.row_bytes[i] == 0));
  }
  std::memset(tiles, 0, sizeof tiles);
  num_loads++;
}

inline void release() {
  shapes = {};
  num_releases++;
}

inline void zero(int tile) {
  demand(shapes.rows[tile] > 0);
  std::memset(tiles[tile], 0, sizeof tiles[tile]);
}

inline void load(int tile, const void* from, int64_t stride) {
  zero(tile);
  for (int row = 0; row < shapes.rows[tile]; row++)
    std::memcpy(tiles[tile][row], static_cast<const char*>(from) + row * stride, shapes.row_bytes[tile]);
}

inline void store(int tile, void* to, int64_t stride) {
  demand(shapes.rows[tile] > 0);
  for (int row = 0; row < shapes.rows[tile]; row++)
    std::memcpy(static_cast<char*>(to) + row * stride, tiles[tile][row], shapes.row_bytes[tile]);
}

// sums [m, n] += signed bytes a [m, 4 k] times unsigned bytes b [k, n, 4].
inline void multiply(int sums, int a, int b) {
  demand(sums != a && sums != b && a != b);
  demand(shapes.rows[sums] > 0 && shapes.rows[a] == shapes.rows[sums]);
  demand(shapes.row_bytes[b] == shapes.row_bytes[sums] && shapes.row_bytes[a] == 4 * shapes.rows[b]);
  for (int m = 0; m < shapes.rows[sums]; m++)
    for (int n = 0; n < shapes.row_bytes[sums] / 4; n++) {
      int32_t sum;
      std::memcpy(&sum, &tiles[sums][m][4 * n], 4);
      for (int k = 0; k < shapes.rows[b]; k++)
        for (int i = 0; i < 4; i++) {
          const uint8_t weight = tiles[b][k][4 * n + i];
          const int value = is_right ? weight : static_cast<int8_t>(weight);
          sum += static_cast<int8_t>(tiles[a][m][4 * k + i]) * value;
        }
      std::memcpy(&tiles[sums][m][4 * n], &sum, 4);
    }
}

}  // namespace emulated

inline bool ask_for_tiles() { return emulated::is_allowed; }
}  // namespace

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbsud
#define _tile_loadconfig emulated::load_shapes
#define _tile_release emulated::release
#define _tile_zero emulated::zero
#define _tile_loadd emulated::load
#define _tile_stored emulated::store
#define _tile_dpbsud emulated::multiply
