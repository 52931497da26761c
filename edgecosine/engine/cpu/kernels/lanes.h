// Vectors of float32 lanes and lane-wise functions.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

#ifdef __AVX512F__
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif

typedef float Vector __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef float LooseVector __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef uint16_t LooseShorts __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));
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

inline Vector load(const uint16_t* p) {
  return (Vector)(__builtin_convertvector(*reinterpret_cast<const LooseShorts*>(p), Ints) << 16);
}

inline Vector load(const int8_t* p) {
#if defined(__AVX512F__)
  const __m128i cells = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (Vector)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(cells));
#elif defined(__AVX2__)
  const __m128i cells = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return (Vector)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(cells));
#else
  Vector v;
  for (int i = 0; i < kLanes; i++) v[i] = p[i];
  return v;
#endif
}

inline void store(float* p, Vector v) { *reinterpret_cast<LooseVector*>(p) = v; }

// The same vector, which the compiler then does not load again for each use.
inline Vector in_register(Vector v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__AVX__)
  asm("" : "+x"(v));
#endif
  return v;
}

inline float scalar(const float* p) { return *p; }
inline float scalar(const uint16_t* p) { return widen(*p); }
inline float scalar(const int8_t* p) { return static_cast<float>(*p); }
inline void put(float* p, float v) { *p = v; }
inline void put(uint16_t* p, float v) { *p = narrow(v); }

// exp(x) of each lane by range reduction and a degree-6 polynomial.
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

// Sum of the lanes, by halves.
inline float total(Vector v) {
#ifdef __AVX512F__
  v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
#else
  v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
  v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
#endif
  return v[0] + v[1];
}

inline float greatest(Vector v) {
  float most = v[0];
#ifdef __AVX512F__
  const Vector far = __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  v = far > v ? far : v;
#endif
  for (int i = 0; i < 8; i++) most = v[i] > most ? v[i] : most;
  return most;
}

// Vectors that are folded together: one for each of `Count` sums.
template <int Count>
struct Lot {
  Vector of[Count];
};

// Two vectors folded into one: in each, runs of `Run` lanes are added to the adjacent runs. Shorter runs
// stay in their 128 bits, which takes half the time.
template <int Run>
[[gnu::always_inline]] inline Vector folded(Vector p, Vector q) {
  constexpr int kSpan = Run < 4 ? 4 : kLanes;
  Ints low, high;
  for (int i = 0; i < kLanes; i++) {           // compile-time constants
    const int at = i % (kSpan / 2), from = (i % kSpan < kSpan / 2 ? 0 : kLanes) + i / kSpan * kSpan;
    low[i] = from + at / Run * 2 * Run + at % Run;
    high[i] = low[i] + Run;
  }
  return __builtin_shuffle(p, q, low) + __builtin_shuffle(p, q, high);
}

// Lane i of each vector is the sum of the lanes of the vector of(i) returns, in the order of `total`.
template <int Count, int Run = 1, class Of>
[[gnu::always_inline]] inline Lot<Count> totals(const Of& of, int i = 0) {
  if constexpr (Run == kLanes) {
    return of(i % (kLanes / 4) * 4 + i / (kLanes / 4));
  } else {
    const Lot<Count> p = totals<Count, 2 * Run>(of, 2 * i), q = totals<Count, 2 * Run>(of, 2 * i + 1);
    Lot<Count> both;
    for (int c = 0; c < Count; c++) both.of[c] = folded<Run>(p.of[c], q.of[c]);
    return both;
  }
}

// The greatest lane of the bits of non-negative floats, as a float.
inline float greatest(Ints v) {
  const auto fold = [&](Ints w) { v = w > v ? w : v; };
#ifdef __AVX512F__
  fold(__builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  fold(__builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  fold(__builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
#else
  fold(__builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
  fold(__builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5));
#endif
  const int32_t bits = v[0] > v[1] ? v[0] : v[1];
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
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

}  // namespace
