// Included once for each instruction set, inside a namespace that defines its vectors.

constexpr int N = F / LANES;  // vectors a pixel

// Twelve (or two) pixels' sums are named variables, not an array, which GCC would keep in memory.
#define SUM(p, n) I sum_##p##_##n = zero();
#define WEIGHT(n) const I weight_##n = load(w + 2 * LANES * n);
#define DOT(p, n) sum_##p##_##n = dot(sum_##p##_##n, features, weight_##n);
#define MULTIPLY(p)                                         \
    {                                                       \
        std::int32_t both;                                  \
        std::memcpy(&both, from + p * F + c, sizeof both);  \
        const I features = repeat(both);                    \
        VECTORS_OF(DOT, p)                                  \
    }
#define STORE(p, n) store(sums + p * F + LANES * n, sum_##p##_##n);
#define SUMS(p) VECTORS_OF(SUM, p)
#define STORES(p) VECTORS_OF(STORE, p)

// Row of a 3x3 convolution of three rows of features; `finish` takes (pixel, filter, sums).
template <class Finish>
inline void convolve_row(const std::int16_t *const in[3], int width, const std::int16_t *weights,
                         const Finish &finish) {
    alignas(64) std::int32_t sums[WIDEST * F];
    for (int x = 0; x < width; x += WIDEST) {
        PIXELS(SUMS)
        const std::int16_t *w = weights;
        for (int tap = 0; tap < 9; tap++) {
            const std::int16_t *from = in[tap / 3] + (x + tap % 3) * F;
            for (int c = 0; c < F; c += 2, w += 2 * F) {
                VECTORS(WEIGHT)
                PIXELS(MULTIPLY)
            }
        }
        // Through memory: what follows would otherwise crowd the sums out of the registers above.
        PIXELS(STORES)
        for (int i = 0; i < WIDEST * N; i++) finish(x + i / N, LANES * (i % N), to_float(load(sums + LANES * i)));
    }
}

#undef SUM
#undef WEIGHT
#undef DOT
#undef MULTIPLY
#undef STORE
#undef SUMS
#undef STORES

// Writes one map's rows: values to units, with the largest magnitude remembered.
struct Writer {
    std::int16_t *row;
    S units, seen;
    inline void put(int x, int filter, S value) {
        const S scaled = mul(value, units);
        seen = max(seen, abs(scaled));
        narrow(row + (x + 1) * F + filter, scaled);
    }
};

struct Average {
    S lam[3], firm, slope, offset, share;
    bool on[3];
    explicit Average(const Layer &layer) {
        int count = 0;
        for (int i = 0; i < 3; i++) {
            on[i] = layer.lam[i] >= 0;
            count += on[i];
            lam[i] = all(layer.lam[i]);
        }
        firm = all(layer.gamma / (layer.gamma - 1));
        slope = all((layer.a - 1) / (layer.a - 2));
        offset = all(layer.a * layer.lam[2] / (layer.a - 2));
        share = all(1.0f / float(count));
    }
    inline S operator()(S x) const {
        const S magnitude = abs(x), none = all(0.0f);
        S sum = none;
        if (on[0]) sum = max(sub(magnitude, lam[0]), none);
        if (on[1]) sum = add(sum, min(magnitude, mul(firm, max(sub(magnitude, lam[1]), none))));
        if (on[2]) {
            const S soft = max(sub(magnitude, lam[2]), none);
            sum = add(sum, min(magnitude, max(soft, sub(mul(slope, magnitude), offset))));
        }
        return with_sign(mul(sum, share), x);
    }
};

// Row y of z = D r + gate * carried.
inline void first_row(const Layer &layer, const Plane &plane, int y, Writer &out) {
    const int channels = layer.channels;
    const S carried_step = all(layer.carried_step);
    for (int x = 0; x < plane.width; x++) {
        S sum[N];
        for (int n = 0; n < N; n++) sum[n] = all(0.0f);
        for (int ky = 0; ky < 3; ky++) {
            const int row = y + ky - 1;
            if (row < 0 || row >= plane.height) continue;
            for (int kx = 0; kx < 3; kx++) {
                const int column = x + kx - 1;
                if (column < 0 || column >= plane.width) continue;
                const float *from = plane.r + (std::size_t(row) * plane.width + column) * channels;
                const float *w = layer.d + (ky * 3 + kx) * channels * F;
                for (int c = 0; c < channels; c++, w += F)
                    for (int n = 0; n < N; n++) sum[n] = fma(all(from[c]), load(w + LANES * n), sum[n]);
            }
        }
        if (layer.gate && plane.carried) {
            const std::int16_t *from = plane.carried + (std::size_t(y) * plane.width + x) * F;
            for (int n = 0; n < N; n++)
                sum[n] = fma(mul(load(layer.gate + LANES * n), carried_step), widen(from + LANES * n), sum[n]);
        }
        for (int n = 0; n < N; n++) out.put(x, LANES * n, sum[n]);
    }
}

// Row y of the image r + G(features).
inline void last_row(const Layer &layer, const Plane &plane, int y, const std::int16_t *const in[3]) {
    constexpr int REGISTERS = F / (2 * LANES);  // that a pixel's 16-bit features fill
    const int channels = layer.channels;
    for (int x = 0; x < plane.width; x++) {
        const std::size_t at = (std::size_t(y) * plane.width + x) * channels;
        for (int c = 0; c < channels; c++) {
            I sum = zero();
            for (int tap = 0; tap < 9; tap++) {
                const std::int16_t *from = in[tap / 3] + (x + tap % 3) * F;
                const std::int16_t *w = layer.g + (tap * channels + c) * F;
                for (int n = 0; n < REGISTERS; n++) sum = dot(sum, load(from + 2 * LANES * n), load(w + 2 * LANES * n));
            }
            plane.image[at + c] = plane.r[at + c] + float(total(sum)) * layer.vg[c] * layer.step[MAPS - 1];
        }
    }
}

void band(const Layer &layer, const Plane &plane, int from, int to, float *reach) {
    const int width = plane.width, height = plane.height;
    std::vector<Ring> rings;
    for (int map = 0; map < MAPS; map++) rings.emplace_back(width);
    Writer writers[MAPS];
    for (int map = 0; map < MAPS; map++) writers[map] = {nullptr, all(1.0f / layer.step[map]), all(0.0f)};
    alignas(64) float scales[4][F];  // from sums to values
    for (int k = 0; k < 4; k++)
        for (int f = 0; f < F; f++) scales[k][f] = layer.v[k][f] * layer.step[k];
    const Average average(layer);
    for (int newest = from - HALO; newest < to + HALO; newest++) {
        for (int map = 0; map < MAPS; map++) {
            const int y = newest - map;
            Ring &ring = rings[map];
            // Rows too far outside the band for what it still needs are left as they are: never read.
            if (y < from - (HALO - map)) continue;
            if (y < 0 || y >= height) {
                ring.clear(y);
                continue;
            }
            Writer &out = writers[map];
            out.row = ring.row(y);
            if (map == 0) {
                first_row(layer, plane, y, out);
            } else {
                Ring &before = rings[map - 1];
                const std::int16_t *in[3] = {before.row(y - 1), before.row(y), before.row(y + 1)};
                const float *scale = scales[map - 1];
                const std::int16_t *w = layer.h[map - 1];
                const S none = all(0.0f);
                const auto value = [&](int f, S sum) { return mul(sum, load(scale + f)); };
                if (map == 2)
                    convolve_row(in, width, w, [&](int x, int f, S sum) { out.put(x, f, average(value(f, sum))); });
                else if (map == 4)
                    convolve_row(in, width, w, [&](int x, int f, S sum) { out.put(x, f, value(f, sum)); });
                else
                    convolve_row(in, width, w, [&](int x, int f, S sum) { out.put(x, f, max(value(f, sum), none)); });
                ring.close(y, width);
            }
            if (map == MAPS - 1 && y >= from && y < to)
                std::memcpy(plane.features + std::size_t(y) * width * F, ring.row(y) + F,
                            std::size_t(width) * F * sizeof(std::int16_t));
        }
        const int y = newest - MAPS;
        if (y >= from && y < to) {
            Ring &back = rings[MAPS - 1];
            const std::int16_t *in[3] = {back.row(y - 1), back.row(y), back.row(y + 1)};
            last_row(layer, plane, y, in);
        }
    }
    for (int map = 0; map < MAPS; map++) reach[map] = largest(writers[map].seen);
}
