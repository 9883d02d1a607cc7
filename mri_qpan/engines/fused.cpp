// One PAN+ layer of a K-bit network in one pass: D, H1, ReLU, H2, proximal average, T1, ReLU, T2, G.
//
// Between convolutions features are 8-bit integers times a step, one a row of the image, 32 channels a pixel.
// Weights are the odd integers that were trained, exact in 8 bits; sums are 32 bits wide, and the quantizer's
// scale comes in after them. The rows of every feature map flow through rings of three, so that they stay in the
// second-level cache. A thread works a band of rows, and the few rows beyond its borders again.

#include "tiles.h"
#include "vectors.h"

#ifdef AMX
#include <sys/resource.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#endif

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

}  // extern "C"

namespace {

std::size_t padded(int width) { return std::size_t(width + BLOCK - 1) / BLOCK * BLOCK + 2; }

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

BEGIN(AVX512)
namespace avx512 {
constexpr int WIDEST = 12;
#define PIXELS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define VECTORS(X) X(0) X(1)
#define VECTORS_OF(X, p) X(p, 0) X(p, 1)
#include "fused_band.h"
#undef PIXELS
#undef VECTORS
#undef VECTORS_OF
}  // namespace avx512
END

#ifdef AMX
BEGIN(AMX)
namespace amx {
using namespace avx512;  // its vectors
constexpr int WIDEST = 12;
#define PIXELS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define VECTORS(X) X(0) X(1)
#define VECTORS_OF(X, p) X(p, 0) X(p, 1)
#define BY_TILES
#include "fused_band.h"
#undef BY_TILES
#undef PIXELS
#undef VECTORS
#undef VECTORS_OF
}  // namespace amx
END
#endif

BEGIN(AVX2)
namespace avx2 {
constexpr int WIDEST = 2;
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

constexpr int TILE_BITS = 8192;

Band best_band(int at_most) {
#ifdef AMX
    if (at_most >= TILE_BITS && has_avx512() && has_tiles()) return amx::band;
#endif
    if (at_most >= 512 && has_avx512()) return avx512::band;
    return at_most >= 256 && has_avx2() ? avx2::band : nullptr;
}

#ifdef AMX
// A child's exit code; see mri_qpan_fused_trial.
int compare_bands(const Layer &layer, const Plane &by_tiles, const Plane &by_vectors, int rounds) {
    for (int signal : {SIGILL, SIGSEGV, SIGBUS, SIGFPE, SIGABRT}) std::signal(signal, SIG_DFL);  // no traceback
    const rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    using Clock = std::chrono::steady_clock;
    const Plane *planes[] = {&by_tiles, &by_vectors};
    const Band bands[] = {best_band(TILE_BITS), best_band(512)};
    Clock::duration least[] = {Clock::duration::max(), Clock::duration::max()};
    for (int round = 0; round < rounds; round++)
        for (int i = 0; i < 2; i++) {
            const Clock::time_point start = Clock::now();
            bands[i](layer, *planes[i], 0, planes[i]->height);
            least[i] = std::min(least[i], Clock::now() - start);
        }
    const std::size_t pixels = std::size_t(by_tiles.height) * by_tiles.width;
    const bool equal =
        !std::memcmp(by_tiles.image, by_vectors.image, pixels * layer.channels * sizeof(float)) &&
        !std::memcmp(by_tiles.features, by_vectors.features, pixels * F * sizeof(std::int16_t)) &&
        !std::memcmp(by_tiles.steps, by_vectors.steps, by_tiles.height * sizeof(float));
    return (equal ? 1 : 0) + (least[0] < least[1] ? 2 : 0);
}
#endif

}  // namespace

extern "C" {

// Mirrored in kernels.py: a library built from other sources is not used.
__attribute__((visibility("default"))) int mri_qpan_kernels_version() { return 8; }

// Return the bits of the widest vectors that this processor has for the kernel: 512, 256, or 0 for none.
__attribute__((visibility("default"))) int mri_qpan_fused_width() {
    return best_band(512) == avx512::band ? 512 : best_band(512) ? 256 : 0;
}

// Return the bits of a tile where this processor's 8-bit tile products can be used for the kernel, or 0.
__attribute__((visibility("default"))) int mri_qpan_fused_tiles() {
    return best_band(TILE_BITS) == best_band(512) ? 0 : TILE_BITS;
}

// Tell whether this processor's tiles give what its vectors give (1) and are faster (2), or 0.
//
// Another process tries it, since a tile's instruction that a processor or hypervisor refuses ends the process. It
// works one layer `rounds` times by each, into planes of one size.
__attribute__((visibility("default"))) int mri_qpan_fused_trial(const Layer *layer, const Plane *by_tiles,
                                                                const Plane *by_vectors, int rounds) {
#ifdef AMX
    if (best_band(TILE_BITS) == best_band(512)) return 0;
    const pid_t child = fork();
    if (child == 0) _exit(compare_bands(*layer, *by_tiles, *by_vectors, rounds));
    if (child < 0) return 0;
    int status = 0;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR) return 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 0;
#else
    return (void)layer, (void)by_tiles, (void)by_vectors, (void)rounds, 0;
#endif
}

// Work one plane on some threads with vectors, or tiles, of at most `width` bits.
__attribute__((visibility("default"))) int mri_qpan_fused_layer(const Layer *layer, const Plane *plane, int threads,
                                                                int width) {
    const Band band = best_band(width);
    if (!band) return NO_VECTORS;
    const int bands = std::max(1, std::min(threads, plane->height / 16));
    const auto work = [&](int i) {
        const int from = int(std::int64_t(plane->height) * i / bands);
        band(*layer, *plane, from, int(std::int64_t(plane->height) * (i + 1) / bands));
    };
    return guarded([&] { parallel(threads, bands, work); });
}

}  // extern "C"
