// A^H A x of a Cartesian measurement in one pass: coil maps, DFT, mask, inverse DFT, coils combined.
//
// A vector holds one part of as many neighbours along x as it has lanes, so a DFT along y needs no shuffles, and a
// column of blocks stays in the cache from the first coil to the last. The DFT leaves its frequencies in the order
// in which its radices visit them, the inverse takes them in that order, and the mask is stored in it: nothing is
// reordered. Along x, tiles are transposed on the way in and out.

#include "vectors.h"

extern "C" {

// Mirrored in normal.py: change both.
struct Transform {
    int size, stages;
    const int *radix;        // of each stage
    const float *twiddles;   // each stage's (k, radix - 1, 2)
    const float *roots;      // each stage's (radix, 2)
};

struct Measurement {
    int sets, coils, height, width;
    int both;             // 1: DFT along y and x; 0: along y alone
    const float *maps;    // (block, coil, set, y, 2, lane), or null: one coil of unit sensitivity
    const float *mask;    // (y) in the transform's order; with `both` (group of rows, x, lane); over the number of pixels
    Transform along_y, along_x;
};

}  // extern "C"

namespace {

constexpr int MOST = 127;  // the largest radix; mirrored in normal.py

using Apply = void (*)(const Measurement &, const float *, float *, int);

}  // namespace

BEGIN(AVX512)
namespace avx512 {
#include "normal_blocks.h"
}  // namespace avx512
END

BEGIN(AVX2)
namespace avx2 {
#include "normal_blocks.h"
}  // namespace avx2
END

extern "C" {

// out (set, y, x, 2) = A^H A image (set, y, x, 2), with vectors of `width` bits.
__attribute__((visibility("default"))) int mri_qpan_normal(const Measurement *measurement, const float *image,
                                                           float *out, int threads, int width) {
    if (width == 512 && has_avx512()) return guarded([&] { avx512::apply(*measurement, image, out, threads); });
    if (width == 256 && has_avx2()) return guarded([&] { avx2::apply(*measurement, image, out, threads); });
    return NO_VECTORS;
}

}  // extern "C"
