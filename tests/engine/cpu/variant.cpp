// The layers in blocks alone, for the test that holds them equal under all sets of instructions.
#include "linear.h"

extern "C" {
int panel() { return kPanel; }

const char* instructions() { return kInstructions; }

// With minima the bytes are nibbles.
void run(const int8_t* bytes, const uint16_t* scales, const uint16_t* minima, const float* x, void* packed,
         float* y, int64_t rows, int64_t outputs, int64_t blocks, int64_t inputs) {
  const auto multiply = [&](auto* w) {
    pack_blocks(bytes, scales, minima, w, outputs, blocks);
    linear(x, w, nullptr, y, rows, outputs, inputs, 1);
  };
  minima ? multiply(static_cast<Nibbles*>(packed)) : multiply(static_cast<Bytes*>(packed));
}
}
