// The 8-bit layers alone, for the test that holds them equal under all sets of instructions.
#include "linear.h"

extern "C" {
int panel() { return kPanel; }
void pack(const int8_t* bytes, const uint16_t* scales, void* packed, int64_t outputs, int64_t blocks) {
  pack_blocks(bytes, scales, static_cast<Bytes*>(packed), outputs, blocks);
}
void run(const float* x, const void* w, float* y, int64_t rows, int64_t outputs, int64_t inputs) {
  linear(x, static_cast<const Bytes*>(w), nullptr, y, rows, outputs, inputs, 1);
}
}
