// Included once for each instruction set, inside a namespace that defines its vectors.

constexpr int PAIR = 2 * LANES;  // floats of one complex vector

struct Complex {
    S re, im;
};
inline Complex get(const float *p) { return {load(p), load(p + LANES)}; }
inline void put(float *p, Complex x) {
    store(p, x.re);
    store(p + LANES, x.im);
}
inline Complex operator+(Complex x, Complex y) { return {add(x.re, y.re), add(x.im, y.im)}; }
inline Complex operator-(Complex x, Complex y) { return {sub(x.re, y.re), sub(x.im, y.im)}; }
inline Complex times(Complex x, S re, S im) {
    return {sub(mul(x.re, re), mul(x.im, im)), fma(x.re, im, mul(x.im, re))};
}
inline Complex conjugate_times(Complex x, S re, S im) {
    return {fma(x.re, re, mul(x.im, im)), sub(mul(x.im, re), mul(x.re, im))};
}
// x times -i, or i.
template <bool INVERSE>
inline Complex turned(Complex x) {
    const S none = all(0.0f);
    return INVERSE ? Complex{sub(none, x.im), x.re} : Complex{x.im, sub(none, x.re)};
}

inline void butterfly2(Complex *x) {
    const Complex sum = x[0] + x[1];
    x[1] = x[0] - x[1];
    x[0] = sum;
}

template <bool INVERSE>
inline void butterfly4(Complex *x) {
    const Complex even = x[0] + x[2], odd = x[0] - x[2], sum = x[1] + x[3], turn = turned<INVERSE>(x[1] - x[3]);
    x[0] = even + sum;
    x[1] = odd + turn;
    x[2] = even - sum;
    x[3] = odd - turn;
}

// Of any odd size up to MOST, from the pairs j and size - j. `roots`: cosine and sine of 2 pi j / size.
template <bool INVERSE, int MOST_PAIRS>
inline void butterfly_odd(Complex *x, int size, const float *roots) {
    const int half = (size - 1) / 2;
    Complex sum[MOST_PAIRS], apart[MOST_PAIRS], first = x[0];
    for (int j = 0; j < half; j++) {
        sum[j] = x[1 + j] + x[size - 1 - j];
        apart[j] = turned<INVERSE>(x[1 + j] - x[size - 1 - j]);
        x[0] = x[0] + sum[j];
    }
    for (int r = 1; r <= half; r++) {
        Complex even = first, odd = {all(0.0f), all(0.0f)};
        for (int j = 0, root = r; j < half; j++, root = root + r < size ? root + r : root + r - size) {
            const S cosine = all(roots[2 * root]), sine = all(roots[2 * root + 1]);
            even = {fma(cosine, sum[j].re, even.re), fma(cosine, sum[j].im, even.im)};
            odd = {fma(sine, apart[j].re, odd.re), fma(sine, apart[j].im, odd.im)};
        }
        x[r] = even + odd;
        x[size - r] = even - odd;
    }
}

// One stage on runs of `length`: decimation in frequency, or its inverse in time. FIXED is the radix where it has
// code of its own, else 0.
template <bool INVERSE, int FIXED>
void stage(int radix, float *data, int size, int length, const float *twiddles, const float *roots) {
    if constexpr (FIXED) radix = FIXED;
    const int quotient = length / radix;
    for (int k = 0; k < quotient; k++, twiddles += 2 * (radix - 1)) {
        for (int start = k; start < size; start += length) {
            Complex x[FIXED ? FIXED : MOST];
            for (int i = 0; i < radix; i++) x[i] = get(data + (start + i * quotient) * PAIR);
            if (INVERSE && k)
                for (int i = 1; i < radix; i++)
                    x[i] = conjugate_times(x[i], all(twiddles[2 * i - 2]), all(twiddles[2 * i - 1]));
            if constexpr (FIXED == 2) butterfly2(x);
            else if constexpr (FIXED == 4) butterfly4<INVERSE>(x);
            else butterfly_odd<INVERSE, (FIXED ? FIXED : MOST) / 2>(x, radix, roots);
            if (!INVERSE && k)
                for (int i = 1; i < radix; i++)
                    x[i] = times(x[i], all(twiddles[2 * i - 2]), all(twiddles[2 * i - 1]));
            for (int i = 0; i < radix; i++) put(data + (start + i * quotient) * PAIR, x[i]);
        }
    }
}

template <bool INVERSE>
void stage_of(int radix, float *data, int size, int length, const float *twiddles, const float *roots) {
    switch (radix) {
        case 2: return stage<INVERSE, 2>(radix, data, size, length, twiddles, roots);
        case 3: return stage<INVERSE, 3>(radix, data, size, length, twiddles, roots);
        case 4: return stage<INVERSE, 4>(radix, data, size, length, twiddles, roots);
        case 5: return stage<INVERSE, 5>(radix, data, size, length, twiddles, roots);
        case 7: return stage<INVERSE, 7>(radix, data, size, length, twiddles, roots);
        default: return stage<INVERSE, 0>(radix, data, size, length, twiddles, roots);
    }
}

// data (size, 2, lane) in place, unnormalised.
void forward(const Transform &t, float *data) {
    const float *twiddles = t.twiddles, *roots = t.roots;
    for (int i = 0, length = t.size; i < t.stages; length /= t.radix[i++]) {
        stage_of<false>(t.radix[i], data, t.size, length, twiddles, roots);
        twiddles += 2 * (t.radix[i] - 1) * (length / t.radix[i]);
        roots += 2 * t.radix[i];
    }
}

void inverse(const Transform &t, float *data) {
    const float *twiddles = t.twiddles, *roots = t.roots;
    for (int i = 0, length = t.size; i < t.stages; length /= t.radix[i++]) {
        twiddles += 2 * (t.radix[i] - 1) * (length / t.radix[i]);
        roots += 2 * t.radix[i];
    }
    for (int i = t.stages - 1, length = 1; i >= 0; i--) {
        length *= t.radix[i];
        twiddles -= 2 * (t.radix[i] - 1) * (length / t.radix[i]);
        roots -= 2 * t.radix[i];
        stage_of<true>(t.radix[i], data, t.size, length, twiddles, roots);
    }
}

// A column of blocks (set, y, 2, lane) from an image (set, y, x, 2), and back.
inline void read_column(const Measurement &m, const float *image, int block, float *column) {
    const int x = block * LANES, count = std::min(LANES, m.width - x);
    float tail[PAIR] = {};
    for (int row = 0; row < m.sets * m.height; row++, column += PAIR) {
        const float *from = image + 2 * (std::size_t(row) * m.width + x);
        if (count < LANES) from = static_cast<float *>(std::memcpy(tail, from, sizeof(float) * 2 * count));
        Complex value;
        deinterleave(from, value.re, value.im);
        put(column, value);
    }
}

inline void write_column(const Measurement &m, const float *column, int block, float *image) {
    const int x = block * LANES, count = std::min(LANES, m.width - x);
    float tail[PAIR];
    for (int row = 0; row < m.sets * m.height; row++, column += PAIR) {
        float *to = image + 2 * (std::size_t(row) * m.width + x);
        const Complex value = get(column);
        interleave(count < LANES ? tail : to, value.re, value.im);
        if (count < LANES) std::memcpy(to, tail, sizeof(float) * 2 * count);
    }
}

// What one coil sees of a column, and the column's sum of what the coils give back.
inline void see(const Measurement &m, const float *column, const float *maps, float *seen) {
    const std::size_t step = std::size_t(m.height) * PAIR;
    for (std::size_t at = 0; at < step; at += PAIR) {
        Complex sum = {all(0.0f), all(0.0f)};
        for (int set = 0; set < m.sets; set++) {
            const Complex map = get(maps + set * step + at);
            sum = sum + times(get(column + set * step + at), map.re, map.im);
        }
        put(seen + at, sum);
    }
}

inline void give_back(const Measurement &m, const float *seen, const float *maps, float *column) {
    const std::size_t step = std::size_t(m.height) * PAIR;
    for (std::size_t at = 0; at < step; at += PAIR) {
        const Complex value = get(seen + at);
        for (int set = 0; set < m.sets; set++) {
            const Complex map = get(maps + set * step + at);
            float *to = column + set * step + at;
            put(to, get(to) + conjugate_times(value, map.re, map.im));
        }
    }
}

// Mask and both transforms along x of a group of rows, one block after the other in `plane` (block, y, 2, lane).
inline void rows(const Measurement &m, int group, int blocks, std::size_t stride, float *plane, float *line) {
    const std::size_t at = std::size_t(group) * LANES * PAIR;
    for (int b = 0; b < blocks; b++)
        for (int part = 0; part < PAIR; part += LANES)
            transpose(plane + b * stride + at + part, PAIR, line + b * LANES * PAIR + part, PAIR);
    forward(m.along_x, line);
    const float *mask = m.mask + std::size_t(group) * m.width * LANES;
    for (int x = 0; x < m.width; x++) {
        const S weight = load(mask + x * LANES);
        const Complex value = get(line + x * PAIR);
        put(line + x * PAIR, {mul(value.re, weight), mul(value.im, weight)});
    }
    inverse(m.along_x, line);
    for (int b = 0; b < blocks; b++)
        for (int part = 0; part < PAIR; part += LANES)
            transpose(line + b * LANES * PAIR + part, PAIR, plane + b * stride + at + part, PAIR);
}

void apply(const Measurement &m, const float *image, float *out, int threads) {
    const int blocks = (m.width + LANES - 1) / LANES, groups = (m.height + LANES - 1) / LANES;
    const std::size_t step = std::size_t(m.height) * PAIR, column = m.sets * step;
    const auto maps = [&](int block, int coil) { return m.maps + (std::size_t(block) * m.coils + coil) * column; };
    if (!m.both) {
        parallel(threads, blocks, [&](int block) {
            float *x = scratch<0>(2 * column + step), *sum = x + column, *seen = sum + column;
            read_column(m, image, block, x);
            if (m.maps) std::fill_n(sum, column, 0.0f);
            for (int coil = 0; coil < m.coils; coil++) {
                if (m.maps) see(m, x, maps(block, coil), seen);
                float *line = m.maps ? seen : x;
                forward(m.along_y, line);
                for (int y = 0; y < m.height; y++) {
                    const S weight = all(m.mask[y]);
                    const Complex value = get(line + y * PAIR);
                    put(line + y * PAIR, {mul(value.re, weight), mul(value.im, weight)});
                }
                inverse(m.along_y, line);
                if (m.maps) give_back(m, seen, maps(block, coil), sum);
            }
            write_column(m, m.maps ? sum : x, block, out);
        });
        return;
    }
    // One coil's plane at a time, which the caches hold; whole groups of rows.
    const std::size_t stride = std::size_t(groups) * LANES * PAIR;
    float *x = scratch<1>(blocks * (2 * column + stride)), *sum = x + blocks * column, *plane = sum + blocks * column;
    for (int coil = 0; coil < m.coils; coil++) {
        parallel(threads, blocks, [&](int b) {
            float *seen = plane + b * stride;
            if (coil == 0) read_column(m, image, b, m.maps ? x + b * column : seen);
            if (m.maps) see(m, x + b * column, maps(b, coil), seen);
            forward(m.along_y, seen);
            std::fill(seen + step, seen + stride, 0.0f);
        });
        parallel(threads, groups, [&](int group) {
            rows(m, group, blocks, stride, plane, scratch<2>(std::size_t(blocks) * LANES * PAIR));
        });
        parallel(threads, blocks, [&](int b) {
            float *seen = plane + b * stride, *total = sum + b * column;
            inverse(m.along_y, seen);
            if (m.maps && coil == 0) std::fill_n(total, column, 0.0f);
            if (m.maps) give_back(m, seen, maps(b, coil), total);
            if (coil + 1 == m.coils) write_column(m, m.maps ? total : seen, b, out);
        });
    }
}
