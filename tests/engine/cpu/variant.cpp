// The layers in blocks alone, for the test that holds them equal under all sets of instructions.
#include "linear.h"

extern "C" {
int panel() { return kPanel; }

const char* name_of_instructions() { return instructions(); }

const char* fault() { return fault_of_tiles(); }

#ifdef EDGECOSINE_EMULATED_TILES
void refuse_tiles() { emulated::is_allowed = false; }
void spoil_tiles() { emulated::is_right = false; }
int num_tile_loads() { return emulated::num_loads; }
int num_tile_releases() { return emulated::num_releases; }
#endif

// With minima the bytes are nibbles.
void run(const int8_t* bytes, const uint16_t* scales, const uint16_t* minima, const float* x, void* packed,
         float* y, int64_t rows, int64_t outputs, int64_t blocks, int64_t inputs, int threads) {
  const auto multiply = [&](auto* w) {
    pack_blocks(bytes, scales, minima, w, outputs, blocks);
    linear(x, w, nullptr, y, rows, outputs, inputs, threads);
  };
  minima ? multiply(static_cast<Nibbles*>(packed)) : multiply(static_cast<Bytes*>(packed));
}
}
