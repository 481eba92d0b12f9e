/* Dropout whose random numbers follow from a seed and a place: the way back draws them again. */

INLINE uint32_t scramble(uint32_t x) { /* every bit of x decides on every bit (Wellons 2018, lowbias32) */
    x ^= x >> 16, x *= 0x7feb352dU;
    x ^= x >> 15, x *= 0x846ca68bU;
    return x ^ x >> 16;
}

/* What dropout multiplies the i-th element by. */
INLINE float kept(float dropout, uint32_t seed, int64_t i) {
    return scramble(seed + (uint32_t)i * 0x9e3779b9U) >= (uint32_t)(dropout * 4294967296.0f) ? 1 / (1 - dropout) : 0;
}

static uint32_t seed_of(uint32_t seed, int64_t row, int64_t layer, int64_t place) {
    return scramble(scramble(scramble(seed + row) + layer) + place);
}

static void drop(float *x, int64_t n, float dropout, uint32_t seed) {
    for (int64_t i = 0; dropout > 0 && i < n; i++) x[i] *= kept(dropout, seed, i);
}
