// 3x3 convolutions in float32 with their gradients, for training and for full-precision networks. See convolutions.py.

#include "vectors.h"

extern "C" {

// Mirrored in convolutions.py: change both.
struct Images {
    int count, height, width, inputs, outputs;
};

}  // extern "C"

#define INLINE __attribute__((always_inline))

BEGIN(AVX512)
namespace avx512 {
constexpr int ROWS = 14;
#define ALL_ROWS(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14)
#include "winograd_tiles.h"
#undef ALL_ROWS
#include "few_channels.h"
}  // namespace avx512
END

BEGIN(AVX2)
namespace avx2 {
constexpr int ROWS = 6;
#define ALL_ROWS(X) X(1) X(2) X(3) X(4) X(5) X(6)
#include "winograd_tiles.h"
#undef ALL_ROWS
#include "few_channels.h"
}  // namespace avx2
END

#define CALL(name, ...)                                                                                           \
    if (width == 512 && has_avx512()) return guarded([&] { avx512::name(*images, __VA_ARGS__); });                 \
    if (width == 256 && has_avx2()) return guarded([&] { avx2::name(*images, __VA_ARGS__); });                     \
    return NO_VECTORS;
#define API __attribute__((visibility("default"))) int

// Weights' elements lie at `strides`. `turned`: with the transpose, as from a gradient to what it is a gradient of.
extern "C" {

// Between features, in multiples of 32: out (count, y, x, outputs) from in (count, y, x, inputs); the weight is
// (output, input, y, x), or, turned, (input, output, y, x). `rectified`: from max(in, 0). `kept`: (count, y, x,
// outputs) or null; out is zero where it is not positive.
API mri_qpan_convolve(const Images *images, const float *in, const float *weight, const long *strides, int turned,
                      int rectified, const float *kept, float *out, int threads, int width) {
    CALL(convolve, in, weight, strides, turned != 0, rectified != 0, kept, out, threads)
}

API mri_qpan_convolve_weight(const Images *images, const float *in, const float *gradient, float *weight,
                             const long *strides, int rectified, int threads, int width) {
    CALL(weight_gradient, in, gradient, weight, strides, rectified != 0, threads)
}

// Between few channels (`inputs`) and features (`outputs`, a multiple of 32); the weight is (feature, channel, y, x).
API mri_qpan_widen(const Images *images, const float *few, const float *weight, const long *strides, int turned,
                   float *wide, int threads, int width) {
    CALL(widen, few, weight, strides, turned != 0, wide, threads)
}

API mri_qpan_narrow(const Images *images, const float *wide, const float *weight, const long *strides, int turned,
                    float *few, int threads, int width) {
    CALL(narrow, wide, weight, strides, turned != 0, few, threads)
}

API mri_qpan_correlate(const Images *images, const float *few, const float *wide, float *weight, const long *strides,
                       int turned, int threads, int width) {
    CALL(correlate, few, wide, weight, strides, turned != 0, threads)
}

}  // extern "C"
