/* Matrix products: bfloat16 inputs with float32 sums where the processor multiplies those (AVX-512), else float32.
   Compile with -DFLOAT32 for float32 everywhere.

   `elem` is one number. `pair` is one multiply-add's input along the summed dimension: two bfloat16 numbers, or
   one float32. The right side of a product is packed in panels, (columns / PANEL, depth, PANEL) pairs, so that each
   tile of the result reads it in one stream. `depth` counts pairs. */

#include "simd.h"

#define PANEL (2 * LANES) /* columns of a packed matrix that are stored together */
#if defined(__AVX512BF16__) && !defined(FLOAT32)
#include <immintrin.h>
#define STEP 2
typedef uint16_t elem;
typedef uint32_t __attribute__((may_alias)) pair;
#else
#define STEP 1
typedef float elem;
typedef float pair;
#endif
#define TILE (LANES == 8 ? 4 : 8) /* rows of a tile */
#define BLOCK 8                   /* rows; TILE divides it, and it divides PANEL */

typedef pair pairvec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE elem to_elem(float x) {
#if STEP == 2
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
#else
    return x;
#endif
}

INLINE float to_f32(elem x) {
#if STEP == 2
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
#else
    return x;
#endif
}

static inline void to_elems(const float *restrict x, elem *restrict y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = to_elem(x[i]);
}

static inline void to_f32s(const elem *restrict x, float *restrict y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = to_f32(x[i]);
}

INLINE vec fma_pairs(vec sum, pair x, pairvec y) {
#if STEP == 2
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(x), (__m512bh)y);
#else
    return sum + x * y;
#endif
}

/* y (rows, vecs * LANES) = or += a (rows, depth) @ b. Strides, in pairs: a_row and a_col of a, b_row of b; in floats:
   y_row of y. `rows` and `vecs` are compile-time constants after inlining. */
INLINE void tile_of(int rows, int vecs, const pair *a, int64_t a_row, int64_t a_col, const pair *b, int64_t b_row,
                    int64_t depth, float *y, int64_t y_row, int accumulate) {
    vec sums[TILE][2] = {0};
    if (accumulate)
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vecs; v++) sums[r][v] = *(const vec *)(y + r * y_row + v * LANES);
    for (int64_t k = 0; k < depth; k++) {
        pairvec right[2];
        for (int v = 0; v < vecs; v++) right[v] = *(const pairvec *)(b + k * b_row + v * LANES);
        for (int r = 0; r < rows; r++) {
            pair x = a[r * a_row + k * a_col];
            for (int v = 0; v < vecs; v++) sums[r][v] = fma_pairs(sums[r][v], x, right[v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vecs; v++) *(vec *)(y + r * y_row + v * LANES) = sums[r][v];
}

/* y (TILE, PANEL) = or += a (TILE, depth) @ one panel of b */
static inline void matmul_tile(const pair *a, int64_t a_row, int64_t a_col, const pair *b, int64_t depth, float *y,
                               int64_t y_row, int accumulate) {
    tile_of(TILE, 2, a, a_row, a_col, b, PANEL, depth, y, y_row, accumulate);
}

/* y (rows, columns) = or += a (rows, depth) @ packed b */
static inline void matmul(const elem *a, const pair *b, int64_t rows, int64_t depth, int64_t columns, float *y,
                          int accumulate) {
    const pair *x = (const pair *)a;
    for (int64_t c = 0; c < columns; c += PANEL)
        for (int64_t r = 0; r < rows; r += TILE)
            matmul_tile(x + r * depth, depth, 1, b + c * depth, depth, y + r * columns + c, columns, accumulate);
}

/* Start of row `row` of a packed matrix's transpose; its row stride is 1, its column stride PANEL. */
INLINE const pair *packed_row(const pair *panels, int64_t depth, int64_t row) {
    return panels + row / PANEL * PANEL * depth + row % PANEL;
}

/* y (rows, columns) += a.T @ b, both packed: a weight's gradient from its layer's output gradients and inputs. */
static inline void matmul_tn(const pair *a, const pair *b, int64_t rows, int64_t depth, int64_t columns, float *y) {
    for (int64_t c = 0; c < columns; c += PANEL)
        for (int64_t r = 0; r < rows; r += TILE)
            matmul_tile(packed_row(a, depth, r), 1, PANEL, b + c * depth, depth, y + r * columns + c, columns, 1);
}

INLINE pair make_pair(elem first, elem second) {
#if STEP == 2
    return first | (pair)second << 16;
#else
    (void)second;
    return first;
#endif
}

/* Pack x (rows, columns), `stride` elems from row to row, in panels of columns, to be summed over its rows. Columns
   missing in the last panel become zero. */
static inline void pack_columns(const elem *restrict x, int64_t stride, int64_t rows, int64_t columns,
                                pair *restrict y) {
    for (int64_t c = 0; c < columns; c += PANEL) {
        int64_t width = columns - c < PANEL ? columns - c : PANEL;
        for (int64_t r = 0; r < rows; r += STEP) {
            const elem *first = x + r * stride + c, *second = first + (STEP - 1) * stride;
            pair *to = y + c * (rows / STEP) + r / STEP * PANEL;
            if (width == PANEL)
                for (int i = 0; i < PANEL; i++) to[i] = make_pair(first[i], second[i]);
            else {
                memset(to, 0, PANEL * sizeof(pair));
                for (int64_t i = 0; i < width; i++) to[i] = make_pair(first[i], second[i]);
            }
        }
    }
}

/* Pack x (rows, columns) in panels of rows, to be summed over its columns. Rows missing in the last panel become
   zero. */
static inline void pack_rows(const elem *restrict x, int64_t stride, int64_t rows, int64_t columns, pair *restrict y) {
    int64_t depth = columns / STEP;
    for (int64_t r = 0; r < rows; r += PANEL) {
        int64_t height = rows - r < PANEL ? rows - r : PANEL;
        pair *to = y + r * depth;
        if (height < PANEL) memset(to, 0, PANEL * depth * sizeof(pair));
        for (int64_t i = 0; i < height; i++)
            for (int64_t k = 0; k < depth; k++) {
                const elem *from = x + (r + i) * stride + k * STEP;
                to[k * PANEL + i] = make_pair(from[0], from[STEP - 1]);
            }
    }
}

#if STEP == 1
/* y (columns,) += x (depth,) @ b (depth, columns), whose rows are `stride` apart */
static inline void matvec(const float *x, int64_t depth, const float *b, int64_t stride, float *y, int64_t columns) {
    int64_t c = 0;
    for (; c + PANEL <= columns; c += PANEL) tile_of(1, 2, x, 0, 1, b + c, stride, depth, y + c, 0, 1);
    for (; c + LANES <= columns; c += LANES) tile_of(1, 1, x, 0, 1, b + c, stride, depth, y + c, 0, 1);
    for (; c < columns; c++)
        for (int64_t k = 0; k < depth; k++) y[c] += x[k] * b[k * stride + c];
}
#endif
