/* SIMD vectors as wide as the processor's registers, and the scalar functions built on them. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float vec4 __attribute__((vector_size(16), aligned(4), may_alias));

INLINE int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

INLINE float reduce_add(vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#endif
    float lanes[LANES];
    *(vec *)lanes = v;
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

INLINE float dot(const float *x, const float *y, int64_t n) {
    vec sums = {0};
    float tail = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sums += *(const vec *)(x + i) * *(const vec *)(y + i);
    for (; i < n; i++) tail += x[i] * y[i];
    return reduce_add(sums) + tail;
}

/* The dot product of one attention head, too short for wide vectors. */
INLINE float dot_head(const float *x, const float *y, int64_t n) {
    vec4 sums = {0};
    float tail = 0;
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) sums += *(const vec4 *)(x + i) * *(const vec4 *)(y + i);
    for (; i < n; i++) tail += x[i] * y[i];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]) + tail;
}

INLINE float sum(const float *x, int64_t n) {
    vec sums = {0};
    float tail = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sums += *(const vec *)(x + i);
    for (; i < n; i++) tail += x[i];
    return reduce_add(sums) + tail;
}

/* exp(x) within 2 units in the last place (Moshier, Cephes), in a form that compilers vectorise. */
INLINE float fast_exp(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float y = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r +
               1.6666665459e-1f) * r + 5.0000001201e-1f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return (y * r * r + r + 1.0f) * power;
}

/* x = exp(x - shift) */
INLINE void exp_inplace(float *x, int64_t n, float shift) {
    for (int64_t i = 0; i < n; i++) x[i] = fast_exp(x[i] - shift);
}
