// A row of a 3x3 convolution by tiles; included in the place of the vectors' own, inside the namespace `amx`.

constexpr int STEP = 16;                 // pixels of a tile
constexpr int HALF = F / 2;              // filters of a tile
constexpr int TILE = 1024;               // bytes
constexpr int PACKED = 3 * 2 * 2 * TILE; // of one convolution's weights

// Weights as tiles hold them: (row of taps, first two taps or third, half of the filters), 16 groups of four inputs.
// A third tap fills half a tile: zeros below it meet what lies behind it.
inline void pack(const std::int8_t *weights, std::int8_t *to) {
    std::memset(to, 0, PACKED);
    for (int k = 0; k < 3; k++)
        for (int group = 0; group < 3 * F / 4; group++)
            for (int half = 0; half < 2; half++) {
                const int part = group / 16;
                std::memcpy(to + ((k * 2 + part) * 2 + half) * TILE + group % 16 * 64,
                            weights + (k * 3 * F / 4 + group) * 4 * F + half * 4 * HALF, 64);
            }
}

#define ROW(k, left, right)                                          \
    tile_zero(left);                                                 \
    tile_zero(right);                                                \
    tile_load(6, in.row[k] + x * F, F);                              \
    tile_load(7, weights + (4 * k + 0) * TILE, 64);                  \
    tile_dot(left, 6, 7);                                            \
    tile_load(7, weights + (4 * k + 1) * TILE, 64);                  \
    tile_dot(right, 6, 7);                                           \
    tile_load(6, in.row[k] + x * F + 2 * F, F);                      \
    tile_load(7, weights + (4 * k + 2) * TILE, 64);                  \
    tile_dot(left, 6, 7);                                            \
    tile_load(7, weights + (4 * k + 3) * TILE, 64);                  \
    tile_dot(right, 6, 7);                                           \
    tile_store(left, parts[k], 4 * F);                               \
    tile_store(right, parts[k] + HALF, 4 * F);

// As the vectors' convolve_row, and the same to the bit: integers add up in any order. `weights` as `pack` leaves them.
inline float convolve_row(const Rows<std::uint8_t> &in, int width, const std::int8_t *weights,
                          const std::int32_t *shift, std::int32_t *sums) {
    int order[3];
    const int count = finest_first(in, order);
    alignas(64) std::int32_t parts[3][STEP * F];
    // A tile's load does not tell the compiler that it reads memory: what was written so far is to be there.
    __asm__ volatile("" ::: "memory");
    for (int x = 0; x < width; x += STEP) {
        ROW(0, 0, 1)
        ROW(1, 2, 3)
        ROW(2, 4, 5)
        for (int n = 0; n < N; n++) {
            I shifts[3];
            S ratios[3];
            for (int i = 0; i < count; i++) {
                shifts[i] = shift ? load(shift + order[i] * F + LANES * n) : zero();
                ratios[i] = all(i ? in.step[order[i - 1]] / in.step[order[i]] : 1.0f);
            }
            for (int p = 0; p < STEP; p++) {
                I sum = zero();
                for (int i = 0; i < count; i++) {
                    if (i) sum = to_int(mul(to_float(sum), ratios[i]));
                    sum = add(add(sum, shifts[i]), load(parts[order[i]] + p * F + LANES * n));
                }
                store(sums + (x + p) * F + LANES * n, sum);
            }
        }
    }
    return count ? in.step[order[count - 1]] : 0.0f;
}

#undef ROW

// The tiles of a thread, as long as it works a band.
struct Session {
    Session() {
        const TileConfig config(8);
        // The instruction reads all of it, of which GCC's intrinsic names the first bytes alone.
        __asm__ volatile("" ::"r"(&config) : "memory");
        tile_configure(&config);
    }
    ~Session() { tile_end(); }
    Session(const Session &) = delete;
};
