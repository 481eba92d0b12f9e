/* The transformer's layers without matrix products: norms, rotary positions, activations, dropout, cross-entropy. */

#define RMS_EPS 1e-6f

/* y = x / rms(x) (Zhang & Sennrich 2019); returns 1 / rms(x). */
INLINE float rms_norm(const float *restrict x, int64_t n, float *restrict y) {
    float scale = 1 / sqrtf(dot(x, x, n) / n + RMS_EPS);
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale;
    return scale;
}

/* dx += the input's gradient, from the output y, its gradient dy, and the scale that rms_norm returned. */
INLINE void rms_norm_backward(const float *restrict dy, const float *restrict y, float scale, int64_t n,
                              float *restrict dx) {
    float mean = dot(dy, y, n) / n;
    for (int64_t i = 0; i < n; i++) dx[i] += scale * (dy[i] - y[i] * mean);
}

/* y (D,) = scale * x with each pair (i, i + D / 2) rotated by its angle (Su et al. 2021). sign -1 rotates back. */
INLINE void rope(const float *x, const float *cos, const float *sin, float sign, float scale, int64_t half, float *y) {
    int64_t j = 0;
    for (; j + 4 <= half; j += 4) {
        vec4 a = *(const vec4 *)(x + j), b = *(const vec4 *)(x + j + half);
        vec4 c = scale * *(const vec4 *)(cos + j), s = sign * scale * *(const vec4 *)(sin + j);
        *(vec4 *)(y + j) = a * c - b * s;
        *(vec4 *)(y + j + half) = a * s + b * c;
    }
    for (; j < half; j++) {
        float a = x[j], b = x[j + half], c = scale * cos[j], s = sign * scale * sin[j];
        y[j] = a * c - b * s;
        y[j + half] = a * s + b * c;
    }
}

/* Normalise one query or key (Henry et al. 2020), divide it by `divisor` and rotate it, in place; returns 1 / rms(x). */
INLINE float qk_norm_rope(float *x, const float *cos, const float *sin, float divisor, int64_t size) {
    float scale = 1 / sqrtf(dot_head(x, x, size) / size + RMS_EPS);
    rope(x, cos, sin, 1, scale / divisor, size / 2, x);
    return scale;
}

static inline void relu_squared(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = x[i] > 0 ? x[i] * x[i] : 0;
}

/* y = x * x; n here and below: a multiple of LANES */
static inline void square(const elem *restrict x, elem *restrict y, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) store_elems(y + i, load_elems(x + i) * load_elems(x + i));
}

/* relu = max(x, 0); squared = relu * relu */
static inline void relu_squared_elems(const float *restrict x, elem *restrict relu, elem *restrict squared, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) {
        store_elems(relu + i, positive(*(const vec *)(x + i)));
        store_elems(squared + i, load_elems(relu + i) * load_elems(relu + i));
    }
}

/* GELU's tanh approximation (Hendrycks & Gimpel 2016), as in GPT-2. */
static inline void gelu(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] /= 1 + fast_exp(-1.5957691216f * (x[i] + 0.044715f * x[i] * x[i] * x[i]));
}

/* A hash in which each input bit affects every output bit (Wellons 2018, lowbias32). */
INLINE uint32_t hash32(uint32_t x) {
    x ^= x >> 16, x *= 0x7feb352dU;
    x ^= x >> 15, x *= 0x846ca68bU;
    return x ^ x >> 16;
}

/* Dropout's random numbers are a hash of seed and index, so that the backward pass computes the same ones again. */
INLINE uint32_t dropout_seed(uint32_t seed, int64_t row, int64_t layer, int64_t site) {
    return hash32(hash32(hash32(seed + row) + layer) + site);
}

/* Dropout factors of elements i to i + LANES - 1: 0 or 1 / (1 - p). */
INLINE vec dropout_factors(float p, uint32_t seed, int64_t i) {
    words x = seed + ((uint32_t)i + lane_numbers()) * 0x9e3779b9U;
    x ^= x >> 16, x *= 0x7feb352dU; /* hash32 */
    x ^= x >> 15, x *= 0x846ca68bU;
    x ^= x >> 16;
    return (vec)((lanes)((vec){0} + 1 / (1 - p)) & (x >= (uint32_t)(p * 4294967296.0f)));
}

/* n: a multiple of LANES */
static inline void dropout(float *x, int64_t n, float p, uint32_t seed) {
    for (int64_t i = 0; p > 0 && i < n; i += LANES) *(vec *)(x + i) *= dropout_factors(p, seed, i);
}

/* exp(x) for |x| < 80, as fast_exp */
INLINE vec exp_small(vec x) {
    vec n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vec y = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r +
             1.6666665459e-1f) * r + 5.0000001201e-1f;
    lanes power = (__builtin_convertvector(n, lanes) + 127) << 23;
    return (y * r * r + r + 1.0f) * (vec)power;
}

/* Loss of one target in nats; its logits become their gradient times `loss_scale`. A negative target doesn't count.
   Logits from `vocab` to `padded` fill the last panel, and get no gradient. */
static inline double cross_entropy(float *logits, int64_t vocab, int64_t padded, int64_t target, float loss_scale) {
    if (target < 0) {
        memset(logits, 0, padded * sizeof(float));
        return 0;
    }
    float max = logits[0], target_logit = logits[target];
    for (int64_t i = 1; i < vocab; i++) max = logits[i] > max ? logits[i] : max;
    exp_inplace(logits, vocab, max);
    float total = sum(logits, vocab), scale = loss_scale / total;
    for (int64_t i = 0; i < vocab; i++) logits[i] *= scale;
    memset(logits + vocab, 0, (padded - vocab) * sizeof(float));
    logits[target] -= loss_scale;
    return (double)logf(total) + max - target_logit;
}
