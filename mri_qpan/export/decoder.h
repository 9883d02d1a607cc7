/* Types and decoder of mri-qpan's K-bit weights: C99, no library, no allocation.
 *
 * A K-bit weight is w = v b with an odd integer b in {-(2^K - 1), ..., -1, 1, ..., 2^K - 1} and a positive
 * scale v of its output filter. The codes (b + 2^K - 1) / 2 are packed one after the other, least significant
 * bit first, without gaps; the weights' order is [output][input][y][x], x fastest.
 */
#ifndef MRI_QPAN_DECODER_H
#define MRI_QPAN_DECODER_H

#include <stddef.h>
#include <stdint.h>

/* A 3x3 convolution, zero-padded by 1, without bias. */
typedef struct {
    const char *name;
    uint16_t outputs, inputs;
    const uint8_t *packed; /* outputs * inputs * 9 codes */
    const float *scales;   /* v, one an output */
} qpan_convolution;

/* Return b, the i-th odd integer of a convolution of K-bit weights. */
static inline int8_t qpan_integer(const qpan_convolution *c, unsigned bits, size_t i)
{
    const size_t place = i * bits;
    const unsigned low = (unsigned)(place % 8);
    unsigned code = (unsigned)c->packed[place / 8] >> low;
    if (low + bits > 8)
        code |= (unsigned)c->packed[place / 8 + 1] << (8 - low);
    code &= (1u << bits) - 1u;
    return (int8_t)(2 * (int)code - (int)((1u << bits) - 1u));
}

/* Return w = v b, the i-th weight, rounded once to float. */
static inline float qpan_weight(const qpan_convolution *c, unsigned bits, size_t i)
{
    return c->scales[i / ((size_t)c->inputs * 9)] * (float)qpan_integer(c, bits, i);
}

#endif
