// One PAN+ layer of a K-bit network in one pass: D, H1, ReLU, H2, proximal average, T1, ReLU, T2, G.
//
// Features are 16-bit integers times a step, 32 channels a pixel: one cache line. Weights are the odd integers
// that were trained, exact in 16 bits; sums are exact in 32 bits, and the quantizer's scale comes in after them.
// The rows of every feature map flow through rings of three, so that they stay in the second-level cache. A
// thread works a band of rows, and the few rows beyond its borders again.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int F = 32;       // filters
constexpr int MAPS = 5;     // z, then what H1, the proximal average, T1 and T2 give
constexpr int BLOCK = 12;   // rows are padded to a multiple of it
constexpr int HALO = MAPS;  // rows beyond a band that its last row depends on

}  // namespace

extern "C" {

// Mirrored in fused.py: change both.
struct Layer {
    const float *d;             // (tap, channel, filter)
    const std::int16_t *h[4];   // (tap, input pair, filter, 2): H1, H2, T1, T2
    const float *v[4];          // (filter): their quantizer scales
    const std::int16_t *g;      // (tap, channel, filter)
    const float *vg;            // (channel): its quantizer scale
    const float *gate;          // (filter), or null without carried features
    float step[MAPS];           // value of one unit of each map
    float carried_step;         // of the carried features
    float lam[3];               // thresholds of l1, MCP, SCAD; negative: not averaged
    float gamma, a;
    int channels;               // 2: complex, 1: real
};

struct Plane {
    const float *r;               // (y, x, channel)
    const std::int16_t *carried;  // (y, x, filter) or null
    float *image;                 // (y, x, channel)
    std::int16_t *features;       // (y, x, filter): what T2 gives
    int height, width;
};

}  // extern "C"

namespace {

// Rows of one map: row y lies in slot y mod 3. A pixel of zeros stands left of each row, and at least one right.
class Ring {
  public:
    explicit Ring(int width)
        : pixels_((width + BLOCK - 1) / BLOCK * BLOCK + 2), rows_(3 * pixels_ * F + 32, std::int16_t(0)) {
        const auto address = reinterpret_cast<std::uintptr_t>(rows_.data());
        start_ = rows_.data() + (64 - address % 64) % 64 / sizeof(std::int16_t);
    }
    Ring(const Ring &) = delete;
    Ring(Ring &&) = default;
    std::int16_t *row(int y) { return start_ + std::size_t((y + 3 * HALO) % 3) * pixels_ * F; }
    void clear(int y) { std::memset(row(y), 0, pixels_ * F * sizeof(std::int16_t)); }
    // Zeros behind the last pixel, where the last block may have written.
    void close(int y, int width) {
        std::memset(row(y) + (width + 1) * F, 0, (pixels_ - width - 1) * F * sizeof(std::int16_t));
    }

  private:
    std::size_t pixels_;
    std::vector<std::int16_t> rows_;
    std::int16_t *start_;
};

using Band = void (*)(const Layer &, const Plane &, int, int, float *);

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
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(y));
    return sum;
}
inline std::int32_t total(I x) { return _mm512_reduce_add_epi32(x); }
inline S load(const float *p) { return _mm512_loadu_ps(p); }
inline S all(float x) { return _mm512_set1_ps(x); }
inline S to_float(I x) { return _mm512_cvtepi32_ps(x); }
inline S widen(const std::int16_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))));
}
inline void narrow(std::int16_t *p, S x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x)));
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
inline I dot(I sum, I x, I y) { return _mm256_add_epi32(sum, _mm256_madd_epi16(x, y)); }
inline std::int32_t total(I x) {
    alignas(32) std::int32_t lanes[LANES];
    _mm256_store_si256(reinterpret_cast<__m256i *>(lanes), x);
    std::int32_t sum = 0;
    for (const std::int32_t lane : lanes) sum += lane;
    return sum;
}
inline S load(const float *p) { return _mm256_loadu_ps(p); }
inline S all(float x) { return _mm256_set1_ps(x); }
inline S to_float(I x) { return _mm256_cvtepi32_ps(x); }
inline S widen(const std::int16_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
}
inline void narrow(std::int16_t *p, S x) {
    const I words = _mm256_cvtps_epi32(x);
    const __m128i packed = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), packed);
}
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

}  // namespace

extern "C" {

// Return the bits of the widest vectors that this processor has for the kernel: 512, 256, or 0 for none.
__attribute__((visibility("default"))) int mri_qpan_fused_width() {
    return best_band(512) == avx512::band ? 512 : best_band(512) ? 256 : 0;
}

// Work one plane on some threads with vectors of at most `width` bits. `reach` (MAPS) gets the largest
// magnitude of each map in units: above 32767 it was clipped.
__attribute__((visibility("default"))) int mri_qpan_fused_layer(const Layer *layer, const Plane *plane, int threads,
                                                                int width, float *reach) {
    const Band band = best_band(width);
    if (!band) return 1;
    const int bands = std::max(1, std::min(threads, plane->height / 16));
    std::vector<float> found(std::size_t(bands) * MAPS, 0.0f);
    const auto work = [&](int i) {
        const int from = int(std::int64_t(plane->height) * i / bands);
        const int to = int(std::int64_t(plane->height) * (i + 1) / bands);
        band(*layer, *plane, from, to, found.data() + std::size_t(i) * MAPS);
    };
    std::vector<std::thread> others;
    for (int i = 1; i < bands; i++) others.emplace_back(work, i);
    work(0);
    for (std::thread &other : others) other.join();
    for (int map = 0; map < MAPS; map++) {
        reach[map] = 0.0f;
        for (int i = 0; i < bands; i++) reach[map] = std::max(reach[map], found[std::size_t(i) * MAPS + map]);
    }
    return 0;
}

}  // extern "C"
