// One processor's 3x3 convolution by Winograd's F(4x4, 3x3) (Lavin and Gray, CVPR 2016): a tile of 4x4 pixels takes
// 36 products of input and output channels in place of 144. Included once for each instruction set, which defines
// ROWS, the rows of a product that fit the registers, and ALL_ROWS(X), X(1) to X(ROWS).

constexpr int SIDE = 6, POINTS = SIDE * SIDE, EDGE = 4, TAPS = 3;
constexpr int MOST = 32;       // tiles worked at a time
constexpr int APART = 16;      // floats between the points' planes, or their stores share a few cache lines
constexpr int COLUMNS = 2 * LANES;

inline S times(float a, S x) { return mul(all(a), x); }
inline S plus(S x, float a, S y) { return fma(all(a), y, x); }

// B^T d: six pixels of the input at the six points.
constexpr auto at_points = [](const S *d, S *p) INLINE {
    const S a = plus(d[4], -4, d[2]), b = plus(d[3], -4, d[1]), c = sub(d[4], d[2]), e = times(2, sub(d[3], d[1]));
    p[0] = add(plus(times(4, d[0]), -5, d[2]), d[4]);
    p[1] = add(a, b);
    p[2] = sub(a, b);
    p[3] = add(c, e);
    p[4] = sub(c, e);
    p[5] = add(plus(times(4, d[1]), -5, d[3]), d[5]);
};

// A^T m: four pixels of the output.
constexpr auto to_pixels = [](const S *m, S *y) INLINE {
    const S even = add(m[1], m[2]), odd = sub(m[1], m[2]), even2 = add(m[3], m[4]), odd2 = sub(m[3], m[4]);
    y[0] = add(add(m[0], even), even2);
    y[1] = plus(odd, 2, odd2);
    y[2] = plus(even, 4, even2);
    y[3] = add(plus(odd, 8, odd2), m[5]);
};

// A y: its transpose, for the gradient.
constexpr auto of_pixels = [](const S *y, S *m) INLINE {
    const S a = add(y[0], y[2]), b = add(y[1], y[3]), c = plus(y[0], 4, y[2]), e = plus(times(2, y[1]), 8, y[3]);
    m[0] = y[0];
    m[1] = add(a, b);
    m[2] = sub(a, b);
    m[3] = add(c, e);
    m[4] = sub(c, e);
    m[5] = y[3];
};

// G g: a filter's three taps at the six points.
constexpr auto of_taps = [](const S *g, S *p) INLINE {
    const S a = add(g[0], g[2]), b = plus(g[0], 4, g[2]);
    p[0] = times(1 / 4.f, g[0]);
    p[1] = times(-1 / 6.f, add(a, g[1]));
    p[2] = times(-1 / 6.f, sub(a, g[1]));
    p[3] = times(1 / 24.f, plus(b, 2, g[1]));
    p[4] = times(1 / 24.f, plus(b, -2, g[1]));
    p[5] = g[2];
};

// G^T p: its transpose.
constexpr auto to_taps = [](const S *p, S *g) INLINE {
    const S a = add(p[1], p[2]), b = add(p[3], p[4]);
    g[0] = plus(plus(times(1 / 4.f, p[0]), -1 / 6.f, a), 1 / 24.f, b);
    g[1] = plus(times(-1 / 6.f, sub(p[1], p[2])), 1 / 12.f, sub(p[3], p[4]));
    g[2] = add(plus(times(-1 / 6.f, a), 1 / 6.f, b), p[5]);
};

// `apply` along y and then along x, from FROM x FROM vectors to TO x TO.
template <int FROM, int TO, class Apply, class Get, class Put>
INLINE inline void both_ways(const Apply &apply, const Get &get, const Put &put) {
    S turned[TO][FROM];
    for (int x = 0; x < FROM; x++) {
        S from[FROM], to[TO];
        for (int y = 0; y < FROM; y++) from[y] = get(y, x);
        apply(from, to);
        for (int y = 0; y < TO; y++) turned[y][x] = to[y];
    }
    for (int y = 0; y < TO; y++) {
        S to[TO];
        apply(turned[y], to);
        for (int x = 0; x < TO; x++) put(y, x, to[x]);
    }
}

// out (R, COLUMNS) = [out +] a (R, count) b (count, COLUMNS); a's element (r, k) is at r * row + k * step.
template <int R>
void multiply(const float *a, int row, int step, int count, const float *b, int b_row, float *out, int out_row,
              bool more) {
    S sum[R][2];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < 2; c++) sum[r][c] = more ? load(out + r * out_row + c * LANES) : all(0);
    for (int k = 0; k < count; k++) {
        const S left = load(b + k * b_row), right = load(b + k * b_row + LANES);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            const S value = all(a[r * row + k * step]);
            sum[r][0] = fma(value, left, sum[r][0]);
            sum[r][1] = fma(value, right, sum[r][1]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < 2; c++) store(out + r * out_row + c * LANES, sum[r][c]);
}

using Multiply = void (*)(const float *, int, int, int, const float *, int, float *, int, bool);
#define OF_ROWS(r) multiply<r>,
constexpr Multiply MULTIPLY[] = {nullptr, ALL_ROWS(OF_ROWS)};
#undef OF_ROWS

// The same for any rows and columns.
inline void product(int rows, int columns, const float *a, int row, int step, int count, const float *b, float *out,
                    bool more) {
    const int parts = (rows + ROWS - 1) / ROWS;
    for (int part = 0; part < parts; part++) {
        const int from = int(std::int64_t(rows) * part / parts);
        const int size = int(std::int64_t(rows) * (part + 1) / parts) - from;
        for (int c = 0; c < columns; c += COLUMNS)
            MULTIPLY[size](a + from * row, row, step, count, b + c, columns, out + from * columns + c, columns, more);
    }
}

// Where a run of tiles lies; `plane` floats hold one point of them all.
struct Run {
    const Images &images;
    int image, row, first, count;
    Run(const Images &all_images, int job, int runs) : images(all_images) {
        const int rows = tiles(images.height), columns = tiles(images.width);
        image = job / (rows * runs);
        row = job / runs % rows;
        const std::int64_t part = job % runs; // times the columns of a very wide image, beyond 32 bits
        first = int(columns * part / runs);
        count = int(columns * (part + 1) / runs) - first;
    }
    static int tiles(int size) { return (size + EDGE - 1) / EDGE; }
    static int runs(const Images &images) { return (tiles(images.width) + MOST - 1) / MOST; }
    static int jobs(const Images &images) { return images.count * tiles(images.height) * runs(images); }
    static std::size_t plane(int channels) { return std::size_t(MOST) * channels + APART; }
};

// Where the pixels of one tile lie, `shift` from its corner on; some may be outside of the image.
struct Tile {
    int height, width, y, x, channels;
    std::ptrdiff_t corner;
    Tile(const Run &run, int t, int shift, int of_channels)
        : height(run.images.height), width(run.images.width), y(run.row * EDGE + shift),
          x((run.first + t) * EDGE + shift), channels(of_channels),
          corner(((std::ptrdiff_t(run.image) * height + y) * width + x) * channels) {}
    bool within(int size) const { return y >= 0 && x >= 0 && y + size <= height && x + size <= width; }
    bool has(int dy, int dx) const { return unsigned(y + dy) < unsigned(height) && unsigned(x + dx) < unsigned(width); }
    std::ptrdiff_t at(int dy, int dx) const { return corner + (std::ptrdiff_t(dy) * width + dx) * channels; }
};

// Read the tiles of a run, N x N pixels each from `shift` on, perhaps rectified, and write them at the points.
template <int N, class Apply>
void transform(const Run &run, const Apply &apply, int shift, bool rectified, const float *from, int channels,
               float *points) {
    const std::size_t plane = Run::plane(channels);
    const S least = all(rectified ? 0 : -INFINITY);
    for (int t = 0; t < run.count; t++) {
        const Tile tile(run, t, shift, channels);
        const bool within = tile.within(N);
        for (int c = 0; c < channels; c += LANES)
            both_ways<N, SIDE>(
                apply,
                [&](int y, int x) INLINE {
                    return within || tile.has(y, x) ? max(least, load(from + tile.at(y, x) + c)) : all(0);
                },
                [&](int y, int x, S value) INLINE {
                    store(points + (y * SIDE + x) * plane + t * channels + c, value);
                });
    }
}

void convolve(const Images &images, const float *in, const float *weight, const long *strides, bool turned,
              bool rectified, const float *kept, float *out, int threads) {
    const int from = images.inputs, to = images.outputs, pairs = from * to;
    Buffer<float> taps(TAPS * TAPS * std::size_t(pairs), 0), filters(POINTS * std::size_t(pairs), 0);
    for (int y = 0; y < TAPS; y++)
        for (int x = 0; x < TAPS; x++)
            for (int i = 0; i < from; i++)
                for (int o = 0; o < to; o++) {
                    const long at = turned ? i * strides[0] + o * strides[1] + (2 - y) * strides[2] + (2 - x) * strides[3]
                                           : o * strides[0] + i * strides[1] + y * strides[2] + x * strides[3];
                    taps.start()[(y * TAPS + x) * pairs + i * to + o] = weight[at];
                }
    for (int p = 0; p < pairs; p += LANES)
        both_ways<TAPS, SIDE>(
            of_taps, [&](int y, int x) INLINE { return load(taps.start() + (y * TAPS + x) * pairs + p); },
            [&](int y, int x, S value) INLINE { store(filters.start() + (y * SIDE + x) * pairs + p, value); });
    const int runs = Run::runs(images);
    parallel(threads, Run::jobs(images), [&](int job) {
        const Run run(images, job, runs);
        float *points = scratch<0>(POINTS * Run::plane(from)), *sums = scratch<1>(POINTS * Run::plane(to));
        transform<SIDE>(run, at_points, -1, rectified, in, from, points);
        for (int p = 0; p < POINTS; p++)
            product(run.count, to, points + p * Run::plane(from), from, 1, from, filters.start() + p * pairs,
                    sums + p * Run::plane(to), false);
        for (int t = 0; t < run.count; t++) {
            const Tile tile(run, t, 0, to);
            const bool within = tile.within(EDGE);
            for (int c = 0; c < to; c += LANES)
                both_ways<SIDE, EDGE>(
                    to_pixels,
                    [&](int y, int x) INLINE {
                        return load(sums + (y * SIDE + x) * Run::plane(to) + t * to + c);
                    },
                    [&](int y, int x, S value) INLINE {
                        if (!within && !tile.has(y, x)) return;
                        const std::ptrdiff_t at = tile.at(y, x) + c;
                        store(out + at, kept ? where_positive(load(kept + at), value) : value);
                    });
        }
    });
}

void weight_gradient(const Images &images, const float *in, const float *gradient, float *weight, const long *strides,
                     bool rectified, int threads) {
    const int from = images.inputs, to = images.outputs, pairs = from * to;
    const int runs = Run::runs(images), jobs = Run::jobs(images);
    std::vector<Buffer<float>> totals;  // one a thread, so that a sum's order does not depend on which comes first
    for (int part = 0; part < threads; part++) totals.emplace_back(POINTS * std::size_t(pairs), 0.f);
    parallel(threads, threads, [&](int part) {
        float *points = scratch<0>(POINTS * Run::plane(from)), *errors = scratch<1>(POINTS * Run::plane(to));
        for (int job = int(std::int64_t(jobs) * part / threads); job < int(std::int64_t(jobs) * (part + 1) / threads);
             job++) {
            const Run run(images, job, runs);
            transform<SIDE>(run, at_points, -1, rectified, in, from, points);
            transform<EDGE>(run, of_pixels, 0, false, gradient, to, errors);
            for (int p = 0; p < POINTS; p++)
                product(from, to, points + p * Run::plane(from), 1, from, run.count, errors + p * Run::plane(to),
                        totals[part].start() + std::size_t(p) * pairs, true);
        }
    });
    Buffer<float> taps(TAPS * TAPS * std::size_t(pairs), 0);
    for (int p = 0; p < pairs; p += LANES)
        both_ways<SIDE, TAPS>(
            to_taps,
            [&](int y, int x) INLINE {
                S sum = all(0);
                for (Buffer<float> &total : totals) sum = add(sum, load(total.start() + (y * SIDE + x) * pairs + p));
                return sum;
            },
            [&](int y, int x, S value) INLINE { store(taps.start() + (y * TAPS + x) * pairs + p, value); });
    for (int y = 0; y < TAPS; y++)
        for (int x = 0; x < TAPS; x++)
            for (int i = 0; i < from; i++)
                for (int o = 0; o < to; o++)
                    weight[o * strides[0] + i * strides[1] + y * strides[2] + x * strides[3]] =
                        taps.start()[(y * TAPS + x) * pairs + i * to + o];
}
