// Included once for each instruction set, inside a namespace that defines its vectors.

constexpr int N = F / LANES;  // vectors a pixel

// Return how many of three rows have values, and put them in the order of their units.
inline int finest_first(const Rows<std::uint8_t> &in, int *order) {
    int count = 0;
    for (int k = 0; k < 3; k++)
        if (in.step[k] > 0) order[count++] = k;
    std::sort(order, order + count, [&](int a, int b) { return in.step[a] < in.step[b]; });
    return count;
}

#ifdef BY_TILES
#include "tiles_row.h"
#else

// A block's sums are named variables, not an array, which GCC would keep in memory.
#define SUM(p, n) I sum_##p##_##n = zero();
#define WEIGHT(n) const I weight_##n = load(w + 4 * LANES * n);
#define DOT(p, n) sum_##p##_##n = dot(sum_##p##_##n, features, weight_##n);
#define MULTIPLY(p)                                                 \
    {                                                               \
        std::int32_t four;                                          \
        std::memcpy(&four, from + p * F + 4 * group, sizeof four);  \
        const I features = repeat(four);                            \
        VECTORS_OF(DOT, p)                                          \
    }
#define RESCALED(p, n) sum_##p##_##n = to_int(mul(to_float(sum_##p##_##n), ratio));
#define SHIFT(n) const I shift_##n = load(shift + k * F + LANES * n);
#define SHIFTED(p, n) sum_##p##_##n = add(sum_##p##_##n, shift_##n);
#define STORE(p, n) store(sums + (x + p) * F + LANES * n, sum_##p##_##n);
#define SUMS(p) VECTORS_OF(SUM, p)
#define RESCALE(p) VECTORS_OF(RESCALED, p)
#define SHIFT_ALL(p) VECTORS_OF(SHIFTED, p)
#define STORES(p) VECTORS_OF(STORE, p)

// Fill `sums` (x, filter) with a row of a 3x3 convolution and return the value of one unit of them.
inline float convolve_row(const Rows<std::uint8_t> &in, int width, const std::int8_t *weights,
                          const std::int32_t *shift, std::int32_t *sums) {
    // From the finest row's units to the coarsest's: sums get smaller, so nothing overflows.
    int order[3];
    const int count = finest_first(in, order);
    for (int x = 0; x < width; x += WIDEST) {
        PIXELS(SUMS)
        for (int i = 0; i < count; i++) {
            const int k = order[i];
            if (i) {
                const S ratio = all(in.step[order[i - 1]] / in.step[k]);
                PIXELS(RESCALE)
            }
            if (shift) {
                VECTORS(SHIFT)
                PIXELS(SHIFT_ALL)
            }
            const std::uint8_t *from = in.row[k] + x * F;
            const std::int8_t *w = weights + k * 3 * F * F;
            // A pixel's features follow its left neighbour's: three taps are one run.
            for (int group = 0; group < 3 * F / 4; group++, w += 4 * F) {
                VECTORS(WEIGHT)
                PIXELS(MULTIPLY)
            }
        }
        PIXELS(STORES)
    }
    return count ? in.step[order[count - 1]] : 0.0f;
}

#undef SUM
#undef WEIGHT
#undef DOT
#undef MULTIPLY
#undef RESCALED
#undef SHIFT
#undef SHIFTED
#undef STORE
#undef SUMS
#undef RESCALE
#undef SHIFT_ALL
#undef STORES

#endif

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

// What becomes of a row's sums, times `unit` and each filter's scale.
struct Finish {
    const std::int32_t *sums;  // (x, filter)
    int width;
    S scale[N];

    Finish(const std::int32_t *row, int pixels, const float *scales, float unit) : sums(row), width(pixels) {
        for (int n = 0; n < N; n++) scale[n] = mul(load(scales + LANES * n), all(unit));
    }

    template <bool SIGNED>
    S largest_values() const {
        I most[N];
        for (int n = 0; n < N; n++) most[n] = zero();
        for (int x = 0; x < width; x++)
            for (int n = 0; n < N; n++) {
                const I sum = load(sums + x * F + LANES * n);
                most[n] = max(most[n], SIGNED ? abs(sum) : sum);
            }
        S top = all(0.0f);
        for (int n = 0; n < N; n++) top = max(top, mul(to_float(most[n]), scale[n]));
        return top;
    }

    float relu(std::uint8_t *row) const {
        const float top = largest(largest_values<false>());
        const S inverse = all(top > 0 ? 255 / top : 0.0f);
        S factor[N];
        for (int n = 0; n < N; n++) factor[n] = mul(scale[n], inverse);
        for (int x = 0; x < width; x++)
            for (int n = 0; n < N; n++) {
                const I positive = max(load(sums + x * F + LANES * n), zero());
                narrow(row + x * F + LANES * n, to_int(mul(to_float(positive), factor[n])));
            }
        return top / 255;
    }

    float shrink(std::uint8_t *row, const Average &average) const {
        // The average grows with its argument's magnitude: the largest goes to the largest.
        const float top = largest(average(largest_values<true>()));
        const S inverse = all(top > 0 ? 127 / top : 0.0f), middle = all(float(ZERO));
        for (int x = 0; x < width; x++)
            for (int n = 0; n < N; n++) {
                const S value = mul(to_float(load(sums + x * F + LANES * n)), scale[n]);
                narrow(row + x * F + LANES * n, to_int(fma(average(value), inverse, middle)));
            }
        return top / 127;
    }

    float wide(std::int16_t *row) const {
        const float top = largest(largest_values<true>());
        const S inverse = all(top > 0 ? 32767 / top : 0.0f);
        S factor[N];
        for (int n = 0; n < N; n++) factor[n] = mul(scale[n], inverse);
        for (int x = 0; x < width; x++)
            for (int n = 0; n < N; n++)
                narrow(row + x * F + LANES * n, to_int(mul(to_float(load(sums + x * F + LANES * n)), factor[n])));
        return top / 32767;
    }
};

#define VALUE(p, n) S value_##p##_##n = all(0.0f);
#define WEIGHT(n) const S weight_##n = load(w + LANES * n);
#define FMA(p, n) value_##p##_##n = fma(input, weight_##n, value_##p##_##n);
#define MULTIPLY(p)                               \
    {                                             \
        const S input = all(from[p * channels]);  \
        VECTORS_OF(FMA, p)                        \
    }
#define STORE(p, n) store(values + (x + p) * F + LANES * n, value_##p##_##n);
#define VALUES(p) VECTORS_OF(VALUE, p)
#define STORES(p) VECTORS_OF(STORE, p)

// Row of z = D r + gate * carried, through `values` (x, filter).
inline float first_row(const Layer &layer, const Plane &plane, int y, Ring<float> &r, float *values,
                       std::uint8_t *row) {
    const int channels = layer.channels, width = plane.width;
    for (int x = 0; x < width; x += WIDEST) {
        PIXELS(VALUES)
        const float *w = layer.d;
        for (int k = 0; k < 3; k++) {
            const float *from = r.row(y + k - 1) + x * channels;
            for (int i = 0; i < 3 * channels; i++, w += F, from++) {
                VECTORS(WEIGHT)
                PIXELS(MULTIPLY)
            }
        }
        PIXELS(STORES)
    }
    S top = all(0.0f);
    const bool carries = layer.gate && plane.carried;
    S gate[N];
    for (int n = 0; n < N; n++)
        gate[n] = carries ? mul(load(layer.gate + LANES * n), all(plane.carried_steps[y])) : top;
    for (int x = 0; x < width; x++)
        for (int n = 0; n < N; n++) {
            float *at = values + x * F + LANES * n;
            S value = load(at);
            if (carries) {
                const std::int16_t *from = plane.carried + (std::size_t(y) * width + x) * F + LANES * n;
                value = fma(gate[n], widen(from), value);
                store(at, value);
            }
            top = max(top, abs(value));
        }
    const float most = largest(top);
    const S inverse = all(most > 0 ? 127 / most : 0.0f), middle = all(float(ZERO));
    for (int i = 0; i < width * F; i += LANES)
        narrow(row + i, to_int(fma(load(values + i), inverse, middle)));
    return most / 127;
}

#undef VALUE
#undef WEIGHT
#undef FMA
#undef MULTIPLY
#undef STORE
#undef VALUES
#undef STORES

// Row y of the image r + G(features).
template <int CHANNELS>
inline void last_row(const Layer &layer, const Plane &plane, int y, const Rows<std::int16_t> &in) {
    constexpr int REGISTERS = 3 * F / (2 * LANES);  // that three pixels' 16-bit features fill
    const int values = plane.width * CHANNELS;
    const float *r = plane.r + std::size_t(y) * values;
    float *image = plane.image + std::size_t(y) * values;
    for (int first = 0; first < values; first += LANES) {
        S sums[LANES];
        for (int i = 0; i < LANES; i += CHANNELS) {
            for (int c = 0; c < CHANNELS; c++) sums[i + c] = all(0.0f);
            for (int k = 0; k < 3; k++) {
                const std::int16_t *from = in.row[k] + (first + i) / CHANNELS * F;
                I sum[CHANNELS];
                for (int c = 0; c < CHANNELS; c++) sum[c] = zero();
                for (int n = 0; n < REGISTERS; n++) {
                    const I features = load(from + 2 * LANES * n);
                    for (int c = 0; c < CHANNELS; c++)
                        sum[c] = dot16(sum[c], features, load(layer.g + ((c * 3 + k) * REGISTERS + n) * 2 * LANES));
                }
                for (int c = 0; c < CHANNELS; c++)
                    sums[i + c] = fma(to_float(sum[c]), all(in.step[k]), sums[i + c]);
            }
        }
        alignas(64) float found[LANES];
        store(found, totals(sums));
        for (int i = 0; i < std::min(LANES, values - first); i++)
            image[first + i] = r[first + i] + found[i] * layer.vg[i % CHANNELS];
    }
}

void band(const Layer &layer, const Plane &plane, int from, int to) {
    const int width = plane.width, height = plane.height, channels = layer.channels;
    Ring<float> r(width, channels, 0.0f);
    // What ReLU gives is not negative.
    Ring<std::uint8_t> maps[4] = {{width, F, ZERO}, {width, F, 0}, {width, F, ZERO}, {width, F, 0}};
    Ring<std::int16_t> last(width, F, 0);
    Buffer<std::int32_t> sums(padded(width) * F, 0);
    Buffer<float> values(padded(width) * F, 0.0f);
    const Average average(layer);
    const std::int8_t *weights[4];
#ifdef BY_TILES
    const Session session;
    Buffer<std::int8_t> packed(4 * PACKED, 0);
    for (int i = 0; i < 4; i++) {
        weights[i] = packed.start() + i * PACKED;
        pack(layer.h[i], packed.start() + i * PACKED);
    }
#else
    std::copy_n(layer.h, 4, weights);
#endif
    const auto read = [&](int y) {
        if (y < 0 || y >= height) return r.clear(y);
        std::copy_n(plane.r + std::size_t(y) * width * channels, width * channels, r.pixels(y));
    };
    const int begin = from - HALO;
    read(begin - 1);
    read(begin);
    for (int newest = begin; newest < to + HALO; newest++) {
        read(newest + 1);
        for (int map = 0; map < MAPS; map++) {
            const int y = newest - map;
            // Rows too far outside the band for what it still needs are left as they are: never read.
            if (y < begin + map) continue;
            if (y < 0 || y >= height) {
                if (map == MAPS - 1) last.clear(y);
                else maps[map].clear(y);
                continue;
            }
            if (map == 0) {
                maps[0].step(y) = first_row(layer, plane, y, r, values.start(), maps[0].pixels(y));
                maps[0].close(y);
                continue;
            }
            const float unit = convolve_row({maps[map - 1], y}, width, weights[map - 1], layer.shift[map - 1], sums.start());
            const Finish finish(sums.start(), width, layer.v[map - 1], unit);
            if (map == MAPS - 1) {
                last.step(y) = finish.wide(last.pixels(y));
                last.close(y);
                if (y < from || y >= to) continue;
                plane.steps[y] = last.step(y);
                std::copy_n(last.pixels(y), width * F, plane.features + std::size_t(y) * width * F);
                continue;
            }
            std::uint8_t *row = maps[map].pixels(y);
            maps[map].step(y) = map == 2 ? finish.shrink(row, average) : finish.relu(row);
            maps[map].close(y);
        }
        const int y = newest - MAPS;
        if (y < from || y >= to) continue;
        channels == 2 ? last_row<2>(layer, plane, y, {last, y}) : last_row<1>(layer, plane, y, {last, y});
    }
}
