// What the kernels share: vectors of two instruction sets under the same names, aligned buffers, threads.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

extern "C" {

// GNU OpenMP's, if PyTorch brought it: its threads are awake, and new ones would share their cores.
void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak, visibility("default")));

}  // extern "C"

namespace {

// Values on a cache line's border.
template <class T>
class Buffer {
  public:
    // The last tile of a row reads a pixel of 32 bytes beyond it.
    Buffer(std::size_t size, T value) : values_(size + 128 / sizeof(T), value) {
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

// What calls return; mirrored in kernels.py.
enum Outcome { DONE = 0, NO_VECTORS = 1, NO_MEMORY = 2 };

// Call work(); an exception must not reach the caller, who is not C++.
template <class Work>
int guarded(const Work &work) {
    try {
        work();
    } catch (const std::bad_alloc &) {
        return NO_MEMORY;
    }
    return DONE;
}

// Call work(0) to work(count - 1), each once, by whichever thread comes. Throws std::bad_alloc if one of them did.
template <class Work>
void parallel(int threads, int count, const Work &work) {
    struct Shared {
        const Work &work;
        int count;
        std::atomic<int> next;
        std::atomic<bool> full;  // an exception that left its thread would end the process
        void run() {
            const auto all = [this] {
                for (int i = next++; i < count && !full; i = next++) work(i);
            };
            if (guarded(all) == NO_MEMORY) full = true;
        }
    } shared{work, count, {0}, {false}};
    threads = std::min(threads, count);
    if (threads > 1 && GOMP_parallel) {
        GOMP_parallel([](void *all) { static_cast<Shared *>(all)->run(); }, &shared, unsigned(threads), 0);
    } else {
        std::vector<std::thread> others;
        others.reserve(std::size_t(std::max(threads, 1)));
        try {
            for (int i = 1; i < threads; i++) others.emplace_back([&] { shared.run(); });
        } catch (const std::system_error &) {  // no more threads: those that are there do the work
        }
        shared.run();
        for (std::thread &other : others) other.join();
    }
    if (shared.full) throw std::bad_alloc();
}

// Kept from call to call: fresh memory would cost more than the work.
template <int WHICH>
float *scratch(std::size_t size) {
    thread_local std::vector<float> kept;
    if (kept.size() < size + 16) kept.resize(size + 16);
    const auto address = reinterpret_cast<std::uintptr_t>(kept.data());
    return kept.data() + (64 - address % 64) % 64 / sizeof(float);
}

inline bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}

inline bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

#define AVX512 "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma"
#define AVX2 "avx2,fma"
#define DO(x) _Pragma(#x)
#if defined(__clang__)
#define BEGIN(set) DO(clang attribute push(__attribute__((target(set))), apply_to = function))
#define END _Pragma("clang attribute pop")
#else
#define BEGIN(set) DO(GCC push_options) DO(GCC target(set))
#define END _Pragma("GCC pop_options")
#endif

BEGIN(AVX512)
namespace avx512 {
using I = __m512i;
using S = __m512;
constexpr int LANES = 16;
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
inline S max(S x, S y) { return _mm512_max_ps(x, y); } // y where either is NaN
// y where x > 0, else 0.
// And where x is NaN: what is broken must show.
inline S where_positive(S x, S y) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, all(0), _CMP_NLE_UQ), y); }
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
inline void deinterleave(const float *p, S &re, S &im) {
    const S low = load(p), high = load(p + LANES);
    const I even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    re = _mm512_permutex2var_ps(low, even, high);
    im = _mm512_permutex2var_ps(low, add(even, _mm512_set1_epi32(1)), high);
}
inline void interleave(float *p, S re, S im) {
    const I low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    store(p, _mm512_permutex2var_ps(re, low, im));
    store(p + LANES, _mm512_permutex2var_ps(re, add(low, _mm512_set1_epi32(8)), im));
}
inline S half(S x, S y, bool odd) { return odd ? _mm512_shuffle_f32x4(x, y, 0xdd) : _mm512_shuffle_f32x4(x, y, 0x88); }
// LANES vectors, `stride` floats apart, as the columns of a matrix become its rows.
inline void transpose(const float *from, int stride, float *to, int to_stride) {
    S t[LANES], u[LANES];
    for (int i = 0; i < LANES; i++) t[i] = load(from + i * stride);
    for (int i = 0; i < LANES; i += 2) {
        u[i] = _mm512_unpacklo_ps(t[i], t[i + 1]);
        u[i + 1] = _mm512_unpackhi_ps(t[i], t[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4)
        for (int k = 0; k < 2; k++) {
            const __m512d a = _mm512_castps_pd(u[i + k]), b = _mm512_castps_pd(u[i + k + 2]);
            t[i + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            t[i + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    for (int k = 0; k < 4; k++) {  // t[4 i + k]: column k of each quarter, of rows 4 i to 4 i + 3
        const S even01 = half(t[k], t[4 + k], false), odd01 = half(t[k], t[4 + k], true);
        const S even23 = half(t[8 + k], t[12 + k], false), odd23 = half(t[8 + k], t[12 + k], true);
        store(to + k * to_stride, half(even01, even23, false));
        store(to + (4 + k) * to_stride, half(odd01, odd23, false));
        store(to + (8 + k) * to_stride, half(even01, even23, true));
        store(to + (12 + k) * to_stride, half(odd01, odd23, true));
    }
}
}  // namespace avx512
END

BEGIN(AVX2)
namespace avx2 {
using I = __m256i;
using S = __m256;
constexpr int LANES = 8;
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
inline S max(S x, S y) { return _mm256_max_ps(x, y); } // y where either is NaN
inline S where_positive(S x, S y) { return _mm256_and_ps(_mm256_cmp_ps(x, all(0), _CMP_NLE_UQ), y); }
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
inline S ordered(S x) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(x), 0xd8)); }
inline void deinterleave(const float *p, S &re, S &im) {
    const S low = load(p), high = load(p + LANES);
    re = ordered(_mm256_shuffle_ps(low, high, 0x88));
    im = ordered(_mm256_shuffle_ps(low, high, 0xdd));
}
inline void interleave(float *p, S re, S im) {
    const S low = _mm256_unpacklo_ps(re, im), high = _mm256_unpackhi_ps(re, im);
    store(p, _mm256_permute2f128_ps(low, high, 0x20));
    store(p + LANES, _mm256_permute2f128_ps(low, high, 0x31));
}
// LANES vectors, `stride` floats apart, as the columns of a matrix become its rows.
inline void transpose(const float *from, int stride, float *to, int to_stride) {
    S t[LANES], u[LANES];
    for (int i = 0; i < LANES; i++) t[i] = load(from + i * stride);
    for (int i = 0; i < LANES; i += 2) {
        u[i] = _mm256_unpacklo_ps(t[i], t[i + 1]);
        u[i + 1] = _mm256_unpackhi_ps(t[i], t[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4)
        for (int k = 0; k < 2; k++) {
            t[i + 2 * k] = _mm256_shuffle_ps(u[i + k], u[i + k + 2], 0x44);
            t[i + 2 * k + 1] = _mm256_shuffle_ps(u[i + k], u[i + k + 2], 0xee);
        }
    for (int k = 0; k < 4; k++) {
        store(to + k * to_stride, _mm256_permute2f128_ps(t[k], t[4 + k], 0x20));
        store(to + (4 + k) * to_stride, _mm256_permute2f128_ps(t[k], t[4 + k], 0x31));
    }
}
}  // namespace avx2
END
