"""A K-bit PAN+ layer's six convolutions as Triton kernels for NVIDIA GPUs; imported only where Triton is.

Features are (batch, y, x, 32), in bfloat16: between two kernels they are 4 MB of a 256 x 256 image, which
stay in the second-level cache. Weights travel as their K bits and are unpacked in registers: odd integers of
up to 4 bits are exact in bfloat16, products with them are summed in float32, and the filter's scale goes in
after the sum, with the rectifier or the proximal average.

Taps are a loop at run time: unrolled, their loads need more registers than there are.
"""

from __future__ import annotations

import triton
import triton.language as tl

FILTERS = tl.constexpr(32)
RECTIFIED = tl.constexpr(1)
AVERAGED = tl.constexpr(2)


@triton.jit
def _pixels(width, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    """Return rows, columns of this program's tile of the image."""
    across = tl.cdiv(width, TILE_X)
    at = tl.arange(0, TILE_Y * TILE_X)
    y = tl.program_id(0) // across * TILE_Y + at // TILE_X
    x = tl.program_id(0) % across * TILE_X + at % TILE_X
    return y, x


@triton.jit
def _neighbours(y, x, tap, height, width):
    """Return rows and columns of the pixels that a 3x3 filter's tap meets, and which of them there are."""
    row, column = y + (tap // 3 - 1), x + (tap % 3 - 1)
    return row, column, (row >= 0) & (row < height) & (column >= 0) & (column < width)


@triton.jit
def expand(
    image,
    carried,
    gate,
    factors,
    weight,
    out,
    height,
    width,
    CHANNELS: tl.constexpr,
    CARRY: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
):
    """Write D image (+ gate carried): image (batch, y, x, channel), weight (tap, channel, 32), float32."""
    y, x = _pixels(width, TILE_Y, TILE_X)
    first = tl.program_id(1).to(tl.int64) * height * width
    filters = tl.arange(0, FILTERS)
    total = tl.zeros((TILE_Y * TILE_X, FILTERS), tl.float32)
    for tap in range(9):
        row, column, inside = _neighbours(y, x, tap, height, width)
        place = (first + row * width + column) * CHANNELS
        for channel in tl.static_range(CHANNELS):
            value = tl.load(image + place + channel, mask=inside, other=0.0)
            factor = tl.load(weight + (tap * CHANNELS + channel) * FILTERS + filters)
            total += value[:, None] * factor[None, :]
    within = ((y < height) & (x < width))[:, None]
    place = (first + y * width + x)[:, None] * FILTERS + filters[None, :]
    if CARRY:
        share = tl.load(gate + filters) * tl.load(factors + tl.program_id(1))
        total += tl.load(carried + place, mask=within, other=0.0).to(tl.float32) * share[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=within)


@triton.jit
def convolve(
    features,
    bits,
    scale,
    shape,
    out,
    height,
    width,
    BITS: tl.constexpr,
    AFTER: tl.constexpr,
    L1: tl.constexpr,
    MCP: tl.constexpr,
    SCAD: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
):
    """Write the convolution of 32 features by 32 filters, rectified or averaged (Eq. 7) or as it is.

    `bits` is (tap, bit, filter) int32 whose bit j belongs to feature j; `shape` the thresholds of l1, MCP and
    SCAD, gamma and a.
    """
    y, x = _pixels(width, TILE_Y, TILE_X)
    first = tl.program_id(1).to(tl.int64) * height * width
    filters = tl.arange(0, FILTERS)
    total = tl.zeros((TILE_Y * TILE_X, FILTERS), tl.float32)
    for tap in range(9):
        row, column, inside = _neighbours(y, x, tap, height, width)
        place = (first + row * width + column)[:, None] * FILTERS + filters[None, :]
        value = tl.load(features + place, mask=inside[:, None], other=0.0)
        level = tl.zeros((FILTERS, FILTERS), tl.int32)
        for bit in tl.static_range(BITS):
            word = tl.load(bits + (tap * BITS + bit) * FILTERS + filters)
            level += ((word[None, :] >> filters[:, None]) & 1) << bit
        odd = (2 * level - (2**BITS - 1)).to(tl.float32).to(value.dtype)
        total = tl.dot(value, odd, total, input_precision="ieee")
    total *= tl.load(scale + filters)[None, :]
    if AFTER == RECTIFIED:
        total = tl.maximum(total, 0.0)
    if AFTER == AVERAGED:
        size = tl.abs(total)
        mean = tl.zeros_like(size)
        if L1:
            mean += tl.maximum(size - tl.load(shape), 0.0)
        if MCP:
            gamma = tl.load(shape + 3)
            steep = gamma / (gamma - 1) * tl.maximum(size - tl.load(shape + 1), 0.0)
            mean += tl.minimum(size, steep)
        if SCAD:
            threshold, a = tl.load(shape + 2), tl.load(shape + 4)
            middle = ((a - 1) * size - a * threshold) / (a - 2)
            mean += tl.minimum(size, tl.maximum(tl.maximum(size - threshold, 0.0), middle))
        mean /= L1 + MCP + SCAD
        total = tl.where(total < 0, -mean, mean)
    within = ((y < height) & (x < width))[:, None]
    place = (first + y * width + x)[:, None] * FILTERS + filters[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=within)


@triton.jit
def collect(
    features,
    weight,
    image,
    out,
    height,
    width,
    CHANNELS: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
):
    """Write image + G features: weight (tap, channel, 32) float32, image and out (batch, y, x, channel)."""
    y, x = _pixels(width, TILE_Y, TILE_X)
    first = (tl.program_id(1) // CHANNELS).to(tl.int64) * height * width
    channel = tl.program_id(1) % CHANNELS
    filters = tl.arange(0, FILTERS)
    within = (y < height) & (x < width)
    own = (first + y * width + x) * CHANNELS + channel
    total = tl.load(image + own, mask=within, other=0.0)
    for tap in range(9):
        row, column, inside = _neighbours(y, x, tap, height, width)
        place = (first + row * width + column)[:, None] * FILTERS + filters[None, :]
        value = tl.load(features + place, mask=inside[:, None], other=0.0).to(tl.float32)
        factor = tl.load(weight + (tap * CHANNELS + channel) * FILTERS + filters)
        total += tl.sum(value * factor[None, :], axis=1)
    tl.store(out + own, total, mask=within)
