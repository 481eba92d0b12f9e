/* Matrix products, in bfloat16 with float sums where the processor multiplies those (AVX-512), else in float.

   Numbers that are multiplied come in units: two bfloat16 that lie together along what is summed, or one float.
   The right side of a product lies in panels, (columns / PANEL, depth / STEP, PANEL) units, so that a tile of
   the result reads it in one stream. Depth counts units. */

#include "vectors.h"

#if defined(__AVX512BF16__) && !defined(FLOAT32)
#include <immintrin.h>
#define STEP 2
typedef uint16_t num;
typedef uint32_t __attribute__((may_alias)) unit;
#else
#define STEP 1
typedef float num;
typedef float unit;
#endif
#define TILE (LANES == 8 ? 4 : 8)
#define BLOCK 8 /* rows; a TILE divides it, and it a PANEL */

typedef unit units __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE num narrow(float x) {
#if STEP == 2
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
#else
    return x;
#endif
}

INLINE float widen(num x) {
#if STEP == 2
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
#else
    return x;
#endif
}

static void narrow_all(const float *restrict x, num *restrict y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = narrow(x[i]);
}

static void widen_all(const num *restrict x, float *restrict y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = widen(x[i]);
}

INLINE vec multiply(vec sum, unit x, units y) {
#if STEP == 2
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(x), (__m512bh)y);
#else
    return sum + x * y;
#endif
}

/* y (TILE, PANEL) = or += a (TILE, depth) @ b; from a's one row to the next are `row` units, and `next` from
   one unit of its depth to the next. */
static void tile(const unit *a, int64_t row, int64_t next, const unit *b, int64_t depth, float *y, int64_t stride,
                 int add) {
    vec sums[TILE][2] = {0};
    if (add)
        for (int r = 0; r < TILE; r++)
            for (int v = 0; v < 2; v++) sums[r][v] = *(const vec *)(y + r * stride + v * LANES);
    for (int64_t k = 0; k < depth; k++) {
        units left = *(const units *)(b + k * PANEL), right = *(const units *)(b + k * PANEL + LANES);
        for (int r = 0; r < TILE; r++) {
            unit x = a[r * row + k * next];
            sums[r][0] = multiply(sums[r][0], x, left);
            sums[r][1] = multiply(sums[r][1], x, right);
        }
    }
    for (int r = 0; r < TILE; r++)
        for (int v = 0; v < 2; v++) *(vec *)(y + r * stride + v * LANES) = sums[r][v];
}

/* y (rows, columns) = or += a (rows, depth) @ b */
static void product(const num *a, const unit *b, int64_t rows, int64_t depth, int64_t columns, float *y, int add) {
    const unit *x = (const unit *)a;
    for (int64_t c = 0; c < columns; c += PANEL)
        for (int64_t r = 0; r < rows; r += TILE)
            tile(x + r * depth, depth, 1, b + c * depth, depth, y + r * columns + c, columns, add);
}

/* Where a tile of the transpose of a matrix in panels begins; its rows are 1 apart, its depth's units PANEL. */
INLINE const unit *turned(const unit *panels, int64_t depth, int64_t row) {
    return panels + row / PANEL * PANEL * depth + row % PANEL;
}

/* y (rows, columns) += a.T @ b, both in panels: of a weight's gradient, from those of outputs and from inputs */
static void outer(const unit *a, const unit *b, int64_t rows, int64_t depth, int64_t columns, float *y) {
    for (int64_t c = 0; c < columns; c += PANEL)
        for (int64_t r = 0; r < rows; r += TILE)
            tile(turned(a, depth, r), 1, PANEL, b + c * depth, depth, y + r * columns + c, columns, 1);
}

INLINE unit join(num first, num second) {
#if STEP == 2
    return first | (unit)second << 16;
#else
    (void)second;
    return first;
#endif
}

/* x (rows, columns), rows `stride` apart, into panels of its columns: to be multiplied along its rows. Columns
   that are missing in the last panel are zero. */
static void by_columns(const num *restrict x, int64_t stride, int64_t rows, int64_t columns, unit *restrict y) {
    for (int64_t c = 0; c < columns; c += PANEL) {
        int64_t width = columns - c < PANEL ? columns - c : PANEL;
        for (int64_t r = 0; r < rows; r += STEP) {
            const num *first = x + r * stride + c, *second = first + (STEP - 1) * stride;
            unit *to = y + c * (rows / STEP) + r / STEP * PANEL;
            if (width == PANEL)
                for (int i = 0; i < PANEL; i++) to[i] = join(first[i], second[i]);
            else {
                memset(to, 0, PANEL * sizeof(unit));
                for (int64_t i = 0; i < width; i++) to[i] = join(first[i], second[i]);
            }
        }
    }
}

/* x (rows, columns) into panels of its rows: to be multiplied along its columns. Rows that are missing in the last
   panel are zero. */
static void by_rows(const num *restrict x, int64_t stride, int64_t rows, int64_t columns, unit *restrict y) {
    int64_t depth = columns / STEP;
    for (int64_t r = 0; r < rows; r += PANEL) {
        int64_t height = rows - r < PANEL ? rows - r : PANEL;
        unit *to = y + r * depth;
        if (height < PANEL) memset(to, 0, PANEL * depth * sizeof(unit));
        for (int64_t i = 0; i < height; i++)
            for (int64_t k = 0; k < depth; k++) {
                const num *from = x + (r + i) * stride + k * STEP;
                to[k * PANEL + i] = join(from[0], from[STEP - 1]);
            }
    }
}
