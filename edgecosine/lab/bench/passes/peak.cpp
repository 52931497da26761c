// The most products per second of this processor: a loop of nothing but the instruction that the kernels
// multiply bytes with.

#include <chrono>
#include <cstdint>
#include <cstdio>

#if defined(__AVX512F__)
typedef int32_t Ints __attribute__((vector_size(64)));
#else
typedef int32_t Ints __attribute__((vector_size(32)));
#endif

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define MULTIPLY(sum) asm volatile("vpdpbusd %1, %1, %0" : "+v"(sum) : "v"(a))
constexpr double kProducts = sizeof(Ints);
#else
#define MULTIPLY(sum) asm volatile("vpmaddwd %1, %1, %0" : "=x"(sum) : "x"(a))
constexpr double kProducts = sizeof(Ints) / 2;
#endif

int main() {
  constexpr int64_t kTurns = 400000, kChains = 12;
  const Ints a = Ints{} + 0x01020304;
  Ints s0 = a, s1 = a, s2 = a, s3 = a, s4 = a, s5 = a, s6 = a, s7 = a, s8 = a, s9 = a, s10 = a, s11 = a;
  double least = 1e9;
  for (int repeat = 0; repeat < 10; repeat++) {
    const auto started = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < kTurns; i++) {     // as many chains as the latency needs
      MULTIPLY(s0); MULTIPLY(s1); MULTIPLY(s2); MULTIPLY(s3); MULTIPLY(s4); MULTIPLY(s5);
      MULTIPLY(s6); MULTIPLY(s7); MULTIPLY(s8); MULTIPLY(s9); MULTIPLY(s10); MULTIPLY(s11);
    }
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - started;
    if (elapsed.count() < least) least = elapsed.count();
  }
  std::printf("%.0f\n", kTurns * kChains * kProducts / least);
}
