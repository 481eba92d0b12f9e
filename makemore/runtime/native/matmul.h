/* Matrix products: bfloat16 inputs with float32 sums where the processor multiplies those (AMX, AVX-512), else float32.
   Compile with -DAMX where the process may use AMX, with -DFLOAT32 for float32 everywhere.

   `elem` is one number. `pair` is one multiply-add's input along the summed dimension: two bfloat16 numbers, or
   one float32. The right side of a product is packed in panels, (columns / PANEL, depth, PANEL) pairs, so that each
   tile of the result reads it in one stream. `depth` counts pairs. */

#include "simd.h"

#define PANEL (2 * LANES) /* columns of a packed matrix that are stored together */
#if defined(__AVX512BF16__) && !defined(FLOAT32)
#define STEP 2
#if defined(AMX) && defined(__AMX_BF16__)
#include "tiles.h"
#define HAS_TILES
#endif
typedef uint16_t elem;
typedef uint32_t __attribute__((may_alias)) pair;
#else
#define STEP 1
typedef float elem;
typedef float pair;
#endif
#ifdef HAS_TILES
#define TILE 32  /* rows of a tile */
#define BLOCK 32 /* rows; TILE and LANES divide it, and it divides PANEL */
#else
#define TILE (LANES == 8 ? 4 : 8)
#define BLOCK (LANES == 16 ? 16 : 8)
#endif

typedef pair pairvec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* 0, 1, 2, … */
INLINE words lane_numbers(void) {
    words numbers;
    for (int i = 0; i < LANES; i++) numbers[i] = (uint32_t)i;
    return numbers;
}

INLINE vec positive(vec x) { return (vec)((lanes)x & (x > 0)); }

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

/* LANES numbers */
INLINE vec load_elems(const elem *x) {
#if STEP == 2
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i_u *)x)), 16);
#else
    return *(const vec *)x;
#endif
}

INLINE void store_elems(elem *x, vec y) {
#if STEP == 2
    _mm256_storeu_si256((__m256i_u *)x, (__m256i)_mm512_cvtneps_pbh((__m512)y));
#else
    *(vec *)x = y;
#endif
}

static inline void to_elems(const float *restrict x, elem *restrict y, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store_elems(y + i, *(const vec *)(x + i));
    for (; i < n; i++) y[i] = to_elem(x[i]);
}

static inline void to_f32s(const elem *restrict x, float *restrict y, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) *(vec *)(y + i) = load_elems(x + i);
    for (; i < n; i++) y[i] = to_f32(x[i]);
}

INLINE vec fma_pairs(vec sum, pair x, pairvec y) {
#if STEP == 2
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(x), (__m512bh)y);
#else
    return sum + x * y;
#endif
}

/* y (rows, vecs * LANES) = or += a (rows, depth) @ b. Strides from row to row: a_row and b_row in pairs, y_row in
   floats. `rows` (at most 8) and `vecs` are compile-time constants after inlining. */
INLINE void tile_of(int rows, int vecs, const pair *a, int64_t a_row, const pair *b, int64_t b_row, int64_t depth,
                    float *y, int64_t y_row, int accumulate) {
    vec sums[8][2] = {0};
    if (accumulate)
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vecs; v++) sums[r][v] = *(const vec *)(y + r * y_row + v * LANES);
    for (int64_t k = 0; k < depth; k++) {
        pairvec right[2];
        for (int v = 0; v < vecs; v++) right[v] = *(const pairvec *)(b + k * b_row + v * LANES);
        for (int r = 0; r < rows; r++) {
            pair x = a[r * a_row + k];
            for (int v = 0; v < vecs; v++) sums[r][v] = fma_pairs(sums[r][v], x, right[v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vecs; v++) *(vec *)(y + r * y_row + v * LANES) = sums[r][v];
}

#ifndef HAS_TILES
INLINE void begin_tiles(int64_t depth) { (void)depth; }
INLINE void end_tiles(void) {}
#endif

/* y (TILE, PANEL) = or += a (TILE, depth) @ one panel of b, between begin_tiles(depth) and end_tiles() */
static inline void matmul_tile(const pair *a, int64_t a_row, const pair *b, int64_t depth, float *y, int64_t y_row,
                               int accumulate) {
#ifdef HAS_TILES
    tile_product(a, a_row, b, PANEL, depth, y, y_row, accumulate);
#else
    tile_of(TILE, 2, a, a_row, b, PANEL, depth, y, y_row, accumulate);
#endif
}

/* y (rows, columns) = or += a (rows, depth) @ packed b */
static inline void matmul(const elem *a, const pair *b, int64_t rows, int64_t depth, int64_t columns, float *y,
                          int accumulate) {
    const pair *x = (const pair *)a;
    begin_tiles(depth);
    for (int64_t c = 0; c < columns; c += PANEL)
        for (int64_t r = 0; r < rows; r += TILE)
            matmul_tile(x + r * depth, depth, b + c * depth, depth, y + r * columns + c, columns, accumulate);
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

#if LANES == 16
#define FIRST_HALVES 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define SECOND_HALVES 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define FIRST_HALVES 0, 8, 1, 9, 2, 10, 3, 11
#define SECOND_HALVES 4, 12, 5, 13, 6, 14, 7, 15
#else
#define FIRST_HALVES 0, 4, 1, 5
#define SECOND_HALVES 2, 6, 3, 7
#endif
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (lanes){__VA_ARGS__})
#endif

/* Interleave row i with row i + LANES / 2, into rows 2 i and 2 i + 1, for all i. */
INLINE void interleave(pairvec rows[LANES]) {
    pairvec old[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) old[i] = rows[i];
#pragma GCC unroll 16
    for (int i = 0; i < LANES / 2; i++) {
        rows[2 * i] = SHUFFLE(old[i], old[i + LANES / 2], FIRST_HALVES);
        rows[2 * i + 1] = SHUFFLE(old[i], old[i + LANES / 2], SECOND_HALVES);
    }
}

/* Transpose a square of LANES rows and columns: interleaving log2(LANES) times does that. */
INLINE void transpose_square(pairvec rows[LANES]) {
    interleave(rows), interleave(rows);
    if (LANES > 4) interleave(rows);
    if (LANES > 8) interleave(rows);
}

/* y (columns, rows) = x.T, both of pairs; strides from row to row. Reads up to LANES - 1 pairs past a row. */
static inline void transpose_pairs(const pair *restrict x, int64_t x_row, int64_t rows, int64_t columns,
                                   pair *restrict y, int64_t y_row) {
    int64_t r = 0;
    for (; r + LANES <= rows; r += LANES)
        for (int64_t c = 0; c < columns; c += LANES) {
            int width = columns - c < LANES ? (int)(columns - c) : LANES;
            pairvec square[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) square[i] = *(const pairvec *)(x + (r + i) * x_row + c);
            transpose_square(square);
#pragma GCC unroll 16
            for (int i = 0; i < width; i++) *(pairvec *)(y + (c + i) * y_row + r) = square[i];
        }
    for (; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) y[c * y_row + r] = x[r * x_row + c];
}

/* Pack x (rows, columns) in panels of rows, to be summed over its columns. Rows missing in the last panel become
   zero. */
static inline void pack_rows(const elem *restrict x, int64_t stride, int64_t rows, int64_t columns, pair *restrict y) {
    int64_t depth = columns / STEP;
    for (int64_t r = 0; r < rows; r += PANEL) {
        int64_t height = rows - r < PANEL ? rows - r : PANEL;
        pair *to = y + r * depth;
        if (height < PANEL) memset(to, 0, PANEL * depth * sizeof(pair));
        transpose_pairs((const pair *)(x + r * stride), stride / STEP, height, depth, to, PANEL);
    }
}

/* y (columns, rows) = x.T; x's rows are `x_row` elems apart, y's `y_row`. `rows` and `columns` are multiples of PANEL,
   which pairs of rows are packed into on the way. */
static inline void transpose(const elem *restrict x, int64_t x_row, int64_t rows, int64_t columns, elem *restrict y,
                             int64_t y_row) {
    pair packed[PANEL / STEP * PANEL];
    for (int64_t c = 0; c < columns; c += PANEL)
        for (int64_t r = 0; r < rows; r += PANEL) {
            pack_columns(x + r * x_row + c, x_row, PANEL, PANEL, packed);
            transpose_pairs(packed, PANEL, PANEL / STEP, PANEL, (pair *)(y + c * y_row + r), y_row / STEP);
        }
}

#if STEP == 1
/* y (columns,) += x (depth,) @ b (depth, columns), whose rows are `stride` apart */
static inline void matvec(const float *x, int64_t depth, const float *b, int64_t stride, float *y, int64_t columns) {
    int64_t c = 0;
    for (; c + PANEL <= columns; c += PANEL) tile_of(1, 2, x, 0, b + c, stride, depth, y + c, 0, 1);
    for (; c + LANES <= columns; c += LANES) tile_of(1, 1, x, 0, b + c, stride, depth, y + c, 0, 1);
    for (; c < columns; c++)
        for (int64_t k = 0; k < depth; k++) y[c] += x[k] * b[k * stride + c];
}
#endif
