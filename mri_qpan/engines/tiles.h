// The tiles of AMX: 16 rows of 64 bytes, products of 8-bit integers summed in 32 bits.
//
// With EMULATE_TILES=1 the instructions are plain C++, so that the kernel's own code is tested on machines without
// them: the shapes and bytes of the instructions' definition, checked where the processor would raise a fault. With
// 2 products fault, with 3 they are wrong.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

// As the processor reads it (palette 1).
struct alignas(64) TileConfig {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
    explicit TileConfig(int tiles) {
        for (int i = 0; i < tiles; i++) row_bytes[i] = 64, rows[i] = 16;
    }
};
static_assert(sizeof(TileConfig) == 64, "the processor reads 64 bytes");

}  // namespace

#ifdef EMULATE_TILES

#include <cstdlib>

namespace {

struct Tiles {
    TileConfig config{0};
    bool loaded = false;
    std::uint8_t bytes[8][16][64];
};
inline Tiles &tiles() {
    thread_local Tiles all;
    return all;
}
inline void check(bool good) {
    if (!good) std::abort();  // the processor's #UD
}
inline void tile_configure(const TileConfig *config) {
    check(config->palette == 1 && config->start_row == 0);
    tiles().config = *config;
    tiles().loaded = true;
    std::memset(tiles().bytes, 0, sizeof tiles().bytes);
}
inline void tile_end() { tiles().loaded = false; }
inline void tile_zero(int t) {
    check(tiles().loaded && tiles().config.rows[t]);
    std::memset(tiles().bytes[t], 0, sizeof tiles().bytes[t]);
}
inline void tile_load(int t, const void *from, std::size_t stride) {
    tile_zero(t);
    for (int row = 0; row < tiles().config.rows[t]; row++)
        std::memcpy(tiles().bytes[t][row], static_cast<const char *>(from) + row * stride, tiles().config.row_bytes[t]);
}
inline void tile_store(int t, void *to, std::size_t stride) {
    check(tiles().loaded && tiles().config.rows[t]);
    for (int row = 0; row < tiles().config.rows[t]; row++)
        std::memcpy(static_cast<char *>(to) + row * stride, tiles().bytes[t][row], tiles().config.row_bytes[t]);
}
// TDPBUSD: sum (m, n) += a (m, k, 4) unsigned times b (k, n, 4) signed.
inline void tile_dot(int sum, int a, int b) {
    check(EMULATE_TILES != 2);
    const TileConfig &config = tiles().config;
    check(tiles().loaded && config.rows[sum] == config.rows[a] && config.row_bytes[sum] == config.row_bytes[b] &&
          config.row_bytes[a] == 4 * config.rows[b]);
    for (int m = 0; m < config.rows[sum]; m++)
        for (int n = 0; n < config.row_bytes[sum] / 4; n++) {
            std::int32_t total;
            std::memcpy(&total, tiles().bytes[sum][m] + 4 * n, 4);
            for (int k = 0; k < config.rows[b]; k++)
                for (int i = 0; i < 4; i++)
                    total += (EMULATE_TILES == 3) + int(tiles().bytes[a][m][4 * k + i]) * int(std::int8_t(tiles().bytes[b][k][4 * n + i]));
            std::memcpy(tiles().bytes[sum][m] + 4 * n, &total, 4);
        }
}
inline bool has_tiles() { return true; }

}  // namespace

#define AMX AVX512

#elif defined(__linux__) && defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

// Whether processor and kernel have AMX's 8-bit products and lend this process the tiles, which it asks for once.
inline bool has_tiles() {
    static const bool lent = [] {
        unsigned a, b, c, d;
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
        const unsigned amx_tile = 1u << 24, amx_int8 = 1u << 25;
        if (!(d & amx_tile) || !(d & amx_int8)) return false;
        constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18;
        return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
    }();
    return lent;
}

}  // namespace

#define AMX "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,amx-tile,amx-int8"
// Tiles are named in the instruction: macros, since a function's argument is no name.
#define tile_configure(config) _tile_loadconfig(config)
#define tile_end() _tile_release()
#define tile_zero(t) _tile_zero(t)
#define tile_load(t, from, stride) _tile_loadd(t, from, stride)
#define tile_store(t, to, stride) _tile_stored(t, to, stride)
#define tile_dot(sum, a, b) _tile_dpbusd(sum, a, b)

#endif
