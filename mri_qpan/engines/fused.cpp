// One PAN+ layer of a K-bit network in one pass: D, H1, ReLU, H2, proximal average, T1, ReLU, T2, G.
//
// Between convolutions features are 8-bit integers times a step, one a row of the image, 32 channels a pixel.
// Weights are the odd integers that were trained, exact in 8 bits; sums are 32 bits wide, and the quantizer's
// scale comes in after them. The rows of every feature map flow through rings of three, so that they stay in the
// second-level cache. A thread works a band of rows, and the few rows beyond its borders again.

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int F = 32;       // filters
constexpr int MAPS = 5;     // z, then what H1, the proximal average, T1 and T2 give
constexpr int BLOCK = 48;   // rows are padded to a multiple of it: of every number of pixels worked at once
constexpr int HALO = MAPS;  // rows beyond a band that its last row depends on
constexpr int ZERO = 128;   // stands for 0 in the maps with negative values

}  // namespace

extern "C" {

// Mirrored in fused.py: change both.
struct Layer {
    const float *d;                // (tap, channel, filter)
    const std::int8_t *h[4];       // (tap, four inputs, filter, 4): H1, H2, T1, T2
    const std::int32_t *shift[4];  // (row of taps, filter): minus the sum of weights times ZERO, or null
    const float *v[4];             // (filter): their quantizer scales
    const std::int16_t *g;         // (channel, tap, filter)
    const float *vg;               // (channel): its quantizer scale
    const float *gate;             // (filter), or null without carried features
    float lam[3];                  // thresholds of l1, MCP, SCAD; negative: not averaged
    float gamma, a;
    int channels;                  // 2: complex, 1: real
};

struct Plane {
    const float *r;               // (y, x, channel)
    const std::int16_t *carried;  // (y, x, filter) or null
    const float *carried_steps;   // (y): value of one unit of each row
    float *image;                 // (y, x, channel)
    std::int16_t *features;       // (y, x, filter): what T2 gives
    float *steps;                 // (y): value of one unit of each row
    int height, width;
};

// GNU OpenMP's, if PyTorch brought it: its threads are awake, and new ones would share their cores.
void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak, visibility("default")));

}  // extern "C"

namespace {

std::size_t padded(int width) { return std::size_t(width + BLOCK - 1) / BLOCK * BLOCK + 2; }

// Values on a cache line's border.
template <class T>
class Buffer {
  public:
    Buffer(std::size_t size, T value) : values_(size + 64 / sizeof(T), value) {
        const auto address = reinterpret_cast<std::uintptr_t>(values_.data());
        start_ = values_.data() + (64 - address % 64) % 64 / sizeof(T);
    }
    Buffer(const Buffer &) = delete;
    Buffer(Buffer &&) = default;
    T *start() { return start_; }

  private:
    std::vector<T> values_;
    T *start_;
};

// Rows of one map: row y lies in slot y mod 3, with a pixel of zeros at its left and at least one at its right.
template <class T>
class Ring {
  public:
    Ring(int width, int channels, T zero)
        : width_(width), channels_(channels), row_(padded(width) * channels), zero_(zero), values_(3 * row_, zero) {}
    T *row(int y) { return values_.start() + slot(y) * row_; }
    T *pixels(int y) { return row(y) + channels_; }
    float &step(int y) { return steps_[slot(y)]; }
    void clear(int y) {
        std::fill_n(row(y), row_, zero_);
        step(y) = 0.0f;
    }
    void close(int y) {
        std::fill_n(row(y), channels_, zero_);
        T *end = pixels(y) + std::size_t(width_) * channels_;
        std::fill(end, row(y) + row_, zero_);
    }

  private:
    static std::size_t slot(int y) { return std::size_t(y + 3 * HALO) % 3; }
    int width_, channels_;
    std::size_t row_;
    T zero_;
    Buffer<T> values_;
    float steps_[3] = {0.0f, 0.0f, 0.0f};
};

// Three rows of one map as a convolution sees them.
template <class T>
struct Rows {
    const T *row[3];
    float step[3];
    Rows(Ring<T> &ring, int y) {
        for (int k = 0; k < 3; k++) row[k] = ring.row(y + k - 1), step[k] = ring.step(y + k - 1);
    }
};

using Band = void (*)(const Layer &, const Plane &, int, int);

}  // namespace

#if defined(__clang__)
#define BEGIN(set) _Pragma("clang attribute push(__attribute__((target(set))), apply_to = function)")
#define END _Pragma("clang attribute pop")
#else
#define DO(x) _Pragma(#x)
#define BEGIN(set) DO(GCC push_options) DO(GCC target(set))
#define END _Pragma("GCC pop_options")
#endif

BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")
namespace avx512 {
using I = __m512i;
using S = __m512;
constexpr int LANES = 16, WIDEST = 12;
inline I zero() { return _mm512_setzero_si512(); }
inline I load(const void *p) { return _mm512_loadu_si512(p); }
inline void store(void *p, I x) { _mm512_store_si512(p, x); }
inline I repeat(std::int32_t x) { return _mm512_set1_epi32(x); }
// In assembly: GCC's intrinsic copies and spills the sum at every use.
inline I dot(I sum, I x, I y) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(y));
    return sum;
}
inline I dot16(I sum, I x, I y) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(y));
    return sum;
}
inline I add(I x, I y) { return _mm512_add_epi32(x, y); }
inline I max(I x, I y) { return _mm512_max_epi32(x, y); }
inline I abs(I x) { return _mm512_abs_epi32(x); }
inline S load(const float *p) { return _mm512_loadu_ps(p); }
inline S all(float x) { return _mm512_set1_ps(x); }
inline S to_float(I x) { return _mm512_cvtepi32_ps(x); }
inline I to_int(S x) { return _mm512_cvtps_epi32(x); }
inline void store(float *p, S x) { _mm512_storeu_ps(p, x); }
inline void narrow(std::uint8_t *p, I x) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm512_cvtusepi32_epi8(x));
}
inline S widen(const std::int16_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))));
}
inline void narrow(std::int16_t *p, I x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtsepi32_epi16(x));
}
inline S mul(S x, S y) { return _mm512_mul_ps(x, y); }
inline S add(S x, S y) { return _mm512_add_ps(x, y); }
inline S sub(S x, S y) { return _mm512_sub_ps(x, y); }
inline S fma(S x, S y, S z) { return _mm512_fmadd_ps(x, y, z); }
inline S max(S x, S y) { return _mm512_max_ps(x, y); }
inline S min(S x, S y) { return _mm512_min_ps(x, y); }
inline S abs(S x) { return _mm512_abs_ps(x); }
inline S with_sign(S x, S y) {
    const I bit = _mm512_set1_epi32(INT32_MIN);
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(x), _mm512_and_si512(bit, _mm512_castps_si512(y))));
}
inline float largest(S x) { return _mm512_reduce_max_ps(x); }
inline S four_totals(const S *x) {
    const S ab = add(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
    const S cd = add(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
    const __m512d p = _mm512_castps_pd(ab), q = _mm512_castps_pd(cd);
    return add(_mm512_castpd_ps(_mm512_unpacklo_pd(p, q)), _mm512_castpd_ps(_mm512_unpackhi_pd(p, q)));
}
inline S halves(S x, S y) { return add(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd)); }
// The sums over the lanes of each of LANES vectors.
inline S totals(const S *x) {
    return halves(halves(four_totals(x), four_totals(x + 4)), halves(four_totals(x + 8), four_totals(x + 12)));
}
#define PIXELS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define VECTORS(X) X(0) X(1)
#define VECTORS_OF(X, p) X(p, 0) X(p, 1)
#include "fused_band.h"
#undef PIXELS
#undef VECTORS
#undef VECTORS_OF
}  // namespace avx512
END

BEGIN("avx2,fma")
namespace avx2 {
using I = __m256i;
using S = __m256;
constexpr int LANES = 8, WIDEST = 2;
inline I zero() { return _mm256_setzero_si256(); }
inline I load(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
inline void store(void *p, I x) { _mm256_store_si256(static_cast<__m256i *>(p), x); }
inline I repeat(std::int32_t x) { return _mm256_set1_epi32(x); }
// Two products of 8 bits and a weight of at most 15 do not leave 16 bits.
inline I dot(I sum, I x, I y) {
    const I pairs = _mm256_maddubs_epi16(x, y);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline I dot16(I sum, I x, I y) { return _mm256_add_epi32(sum, _mm256_madd_epi16(x, y)); }
inline I add(I x, I y) { return _mm256_add_epi32(x, y); }
inline I max(I x, I y) { return _mm256_max_epi32(x, y); }
inline I abs(I x) { return _mm256_abs_epi32(x); }
inline S load(const float *p) { return _mm256_loadu_ps(p); }
inline S all(float x) { return _mm256_set1_ps(x); }
inline S to_float(I x) { return _mm256_cvtepi32_ps(x); }
inline I to_int(S x) { return _mm256_cvtps_epi32(x); }
inline void store(float *p, S x) { _mm256_storeu_ps(p, x); }
inline __m128i packed(I x) {
    return _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}
inline void narrow(std::uint8_t *p, I x) {
    const __m128i words = packed(x);
    _mm_storel_epi64(reinterpret_cast<__m128i *>(p), _mm_packus_epi16(words, words));
}
inline S widen(const std::int16_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
}
inline void narrow(std::int16_t *p, I x) { _mm_storeu_si128(reinterpret_cast<__m128i *>(p), packed(x)); }
inline S mul(S x, S y) { return _mm256_mul_ps(x, y); }
inline S add(S x, S y) { return _mm256_add_ps(x, y); }
inline S sub(S x, S y) { return _mm256_sub_ps(x, y); }
inline S fma(S x, S y, S z) { return _mm256_fmadd_ps(x, y, z); }
inline S max(S x, S y) { return _mm256_max_ps(x, y); }
inline S min(S x, S y) { return _mm256_min_ps(x, y); }
inline S abs(S x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
inline S with_sign(S x, S y) { return _mm256_or_ps(x, _mm256_and_ps(_mm256_set1_ps(-0.0f), y)); }
inline float largest(S x) {
    alignas(32) float lanes[LANES];
    _mm256_store_ps(lanes, x);
    return *std::max_element(lanes, lanes + LANES);
}
inline S four_totals(const S *x) { return _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3])); }
inline S totals(const S *x) {
    const S low = four_totals(x), high = four_totals(x + 4);
    return add(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}
#define PIXELS(X) X(0) X(1)
#define VECTORS(X) X(0) X(1) X(2) X(3)
#define VECTORS_OF(X, p) X(p, 0) X(p, 1) X(p, 2) X(p, 3)
#include "fused_band.h"
#undef PIXELS
#undef VECTORS
#undef VECTORS_OF
}  // namespace avx2
END

namespace {

Band best_band(int at_most) {
    if (at_most >= 512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vnni"))
        return avx512::band;
    if (at_most >= 256 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::band;
    return nullptr;
}

// Bands for whichever thread comes.
struct Work {
    const Layer &layer;
    const Plane &plane;
    Band band;
    int bands;
    std::atomic<int> next;
    void run() {
        for (int i = next++; i < bands; i = next++) {
            const int from = int(std::int64_t(plane.height) * i / bands);
            const int to = int(std::int64_t(plane.height) * (i + 1) / bands);
            band(layer, plane, from, to);
        }
    }
};

}  // namespace

extern "C" {

// Return the bits of the widest vectors that this processor has for the kernel: 512, 256, or 0 for none.
__attribute__((visibility("default"))) int mri_qpan_fused_width() {
    return best_band(512) == avx512::band ? 512 : best_band(512) ? 256 : 0;
}

// Work one plane on some threads with vectors of at most `width` bits.
__attribute__((visibility("default"))) int mri_qpan_fused_layer(const Layer *layer, const Plane *plane, int threads,
                                                                int width) {
    const Band band = best_band(width);
    if (!band) return 1;
    const int bands = std::max(1, std::min(threads, plane->height / 16));
    Work work{*layer, *plane, band, bands, {0}};
    if (GOMP_parallel && bands > 1) {
        GOMP_parallel([](void *all) { static_cast<Work *>(all)->run(); }, &work, unsigned(bands), 0);
        return 0;
    }
    std::vector<std::thread> others;
    for (int i = 1; i < bands; i++) others.emplace_back([&] { work.run(); });
    work.run();
    for (std::thread &other : others) other.join();
    return 0;
}

}  // extern "C"
