// One processor's 3x3 convolutions between an image's one or two channels and many features: all three are products
// with the image's 3x3 neighbourhoods, row by row. Included after winograd_tiles.h, whose `product` they use.

constexpr int NEIGHBOURS = TAPS * TAPS;
constexpr int BLOCK = 16;  // rows that a thread works at a time

// Call work(image, from, to) for every block of rows.
template <class Work>
void blocks(const Images &images, int threads, const Work &work) {
    const int each = (images.height + BLOCK - 1) / BLOCK;
    parallel(threads, images.count * each, [&](int job) {
        const int from = job % each * BLOCK;
        work(job / each, from, std::min(from + BLOCK, images.height));
    });
}

// Weight (feature, channel, y, x) as (neighbour, channel, feature), or, `across`, as (feature, neighbour and channel).
inline void arrange(const Images &images, const float *weight, const long *strides, bool turned, int row, bool across,
                    float *out) {
    const int few = images.inputs;
    for (int y = 0; y < TAPS; y++)
        for (int x = 0; x < TAPS; x++)
            for (int f = 0; f < few; f++)
                for (int c = 0; c < images.outputs; c++) {
                    const int neighbour = (turned ? (2 - y) * TAPS + 2 - x : y * TAPS + x) * few + f;
                    out[across ? c * row + neighbour : neighbour * row + c] =
                        weight[c * strides[0] + f * strides[1] + y * strides[2] + x * strides[3]];
                }
}

// The neighbourhoods (x, neighbour, channel) of row y.
template <int FEW>
void neighbourhoods_of(const Images &images, const float *in, int image, int y, float *out) {
    const int width = images.width, line = (width + 2) * FEW;
    float *padded = scratch<4>(TAPS * std::size_t(line));
    std::fill(padded, padded + TAPS * line, 0.f);
    for (int dy = std::max(-1, -y); dy <= std::min(1, images.height - 1 - y); dy++) {
        const float *from = in + (std::ptrdiff_t(image) * images.height + y + dy) * width * FEW;
        std::copy(from, from + width * FEW, padded + (dy + 1) * line + FEW);
    }
    for (int x = 0; x < width; x++)
        for (int dy = 0; dy < TAPS; dy++)
            for (int i = 0; i < TAPS * FEW; i++) *out++ = padded[dy * line + x * FEW + i];
}

inline void neighbourhoods(const Images &images, const float *in, int image, int y, float *out) {
    (images.inputs == 1 ? neighbourhoods_of<1> : neighbourhoods_of<2>)(images, in, image, y, out);
}

// wide (count, y, x, outputs) from few (count, y, x, inputs).
void widen(const Images &images, const float *few, const float *weight, const long *strides, bool turned, float *wide,
           int threads) {
    const int around = NEIGHBOURS * images.inputs, to = images.outputs;
    Buffer<float> taps(std::size_t(around) * to, 0);
    arrange(images, weight, strides, turned, to, false, taps.start());
    blocks(images, threads, [&](int image, int from, int until) {
        float *near = scratch<2>(std::size_t(images.width) * around);
        for (int y = from; y < until; y++) {
            neighbourhoods(images, few, image, y, near);
            float *out = wide + (std::ptrdiff_t(image) * images.height + y) * images.width * to;
            product(images.width, to, near, around, 1, around, taps.start(), out, false);
        }
    });
}

// few (count, y, x, inputs) from wide (count, y, x, outputs).
void narrow(const Images &images, const float *wide, const float *weight, const long *strides, bool turned, float *few,
            int threads) {
    const int count = images.inputs, around = NEIGHBOURS * count, from = images.outputs;
    const int padded = (around + COLUMNS - 1) / COLUMNS * COLUMNS;
    Buffer<float> taps(std::size_t(padded) * from, 0);
    arrange(images, weight, strides, turned, padded, true, taps.start());
    const std::size_t line = std::size_t(images.width) * padded;
    blocks(images, threads, [&](int image, int first, int until) {
        float *shares = scratch<3>((BLOCK + 2) * line);  // what every pixel gives to each of its neighbours
        const int top = std::max(first - 1, 0), bottom = std::min(until + 1, images.height);
        const float *in = wide + (std::ptrdiff_t(image) * images.height + top) * images.width * from;
        product((bottom - top) * images.width, padded, in, from, 1, from, taps.start(), shares, false);
        for (int y = first; y < until; y++) {
            float *out = few + (std::ptrdiff_t(image) * images.height + y) * images.width * count;
            std::fill(out, out + images.width * count, 0.f);
            for (int dy = std::max(-1, -y); dy <= std::min(1, images.height - 1 - y); dy++) {
                const float *from = shares + (y + dy - top) * line + (dy + 1) * TAPS * count;
                for (int f = 0; f < count; f++) {
                    const auto share = [&](int x, int dx) { return from[x * padded + (dx + 1) * count + f]; };
                    for (int x = 0; x < images.width; x++)
                        out[x * count + f] += share(x, 0) + (x ? share(x - 1, -1) : 0) +
                                              (x + 1 < images.width ? share(x + 1, 1) : 0);
                }
            }
        }
    });
}

// weight's gradient, from few and wide, one of which is the output's gradient.
void correlate(const Images &images, const float *few, const float *wide, float *weight, const long *strides,
               bool turned, int threads) {
    const int around = NEIGHBOURS * images.inputs, to = images.outputs, rows = images.count * images.height;
    std::vector<Buffer<float>> totals;
    for (int part = 0; part < threads; part++) totals.emplace_back(std::size_t(around) * to, 0.f);
    parallel(threads, threads, [&](int part) {
        float *near = scratch<2>(std::size_t(images.width) * around);
        for (int row = int(std::int64_t(rows) * part / threads); row < int(std::int64_t(rows) * (part + 1) / threads);
             row++) {
            neighbourhoods(images, few, row / images.height, row % images.height, near);
            product(around, to, near, 1, around, images.width, wide + std::ptrdiff_t(row) * images.width * to,
                    totals[part].start(), true);
        }
    });
    for (int y = 0; y < TAPS; y++)
        for (int x = 0; x < TAPS; x++)
            for (int f = 0; f < images.inputs; f++)
                for (int c = 0; c < to; c++) {
                    const int neighbour = (turned ? (2 - y) * TAPS + 2 - x : y * TAPS + x) * images.inputs + f;
                    float sum = 0;
                    for (Buffer<float> &total : totals) sum += total.start()[neighbour * to + c];
                    weight[c * strides[0] + f * strides[1] + y * strides[2] + x * strides[3]] = sum;
                }
}
