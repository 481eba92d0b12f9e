/* What the C files share: vectors of the widest registers at hand, and the few functions that need them. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define PANEL (2 * LANES) /* columns of a matrix that lie together */
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float quad __attribute__((vector_size(16), aligned(4), may_alias));

INLINE float across(vec v) {
    float lanes[LANES];
    *(vec *)lanes = v;
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

/* of x * y */
INLINE float dot(const float *x, const float *y, int64_t n) {
    vec sums = {0};
    float rest = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sums += *(const vec *)(x + i) * *(const vec *)(y + i);
    for (; i < n; i++) rest += x[i] * y[i];
    return across(sums) + rest;
}

INLINE float sum(const float *x, int64_t n) {
    vec sums = {0};
    float rest = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sums += *(const vec *)(x + i);
    for (; i < n; i++) rest += x[i];
    return across(sums) + rest;
}

/* exp within 2 units in the last place (Moshier's Cephes), in a way that compilers vectorise */
INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float whole = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float y = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r +
               1.6666665459e-1f) * r + 5.0000001201e-1f;
    int32_t bits = ((int32_t)whole + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return (y * r * r + r + 1.0f) * power;
}
