/* Products of bfloat16 matrices in tile registers (Intel AMX), several times as fast as AVX-512. The process must
   have asked the operating system for them. Tiles 0 to 3 hold sums, 4 and 5 rows of the left matrix, 6 and 7 columns
   of the right one. */

#define TILE_ROWS 16
#define TILE_PAIRS 16 /* of a row */

struct tile_config {
    uint8_t palette, start_row, unused[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* How many of `depth` pairs a tile holds: a divisor, so that no pair is left over. */
INLINE int64_t tile_pairs(int64_t depth) {
    if (depth % TILE_PAIRS == 0) return TILE_PAIRS;
    int64_t pairs = depth < TILE_PAIRS ? depth : TILE_PAIRS;
    while (depth % pairs) pairs--;
    return pairs;
}

static _Thread_local int64_t prepared_pairs; /* 0: the tiles aren't prepared */

/* Prepare for products over `depth` pairs. */
static inline void begin_tiles(int64_t depth) {
    if (prepared_pairs == tile_pairs(depth)) return;
    prepared_pairs = tile_pairs(depth);
    struct tile_config config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.row_bytes[i] = 64, config.rows[i] = TILE_ROWS;
    for (int i = 4; i < 6; i++) config.row_bytes[i] = (uint16_t)(4 * tile_pairs(depth));
    for (int i = 6; i < 8; i++) config.rows[i] = (uint8_t)tile_pairs(depth);
    __asm__ volatile("" ::"r"(&config) : "memory"); /* gcc believes that only 8 bytes are read */
    _tile_loadconfig(&config);
}

static inline void end_tiles(void) {
    _tile_release();
    prepared_pairs = 0;
}

/* y (32, 32) = or += a (32, depth) @ b (depth, 32), whose rows are `b_row` pairs apart. */
INLINE void tile_product(const uint32_t *a, int64_t a_row, const uint32_t *b, int64_t b_row, int64_t depth, float *y,
                         int64_t y_row, int accumulate) {
    int64_t pairs = tile_pairs(depth);
    float *below = y + TILE_ROWS * y_row;
    __asm__ volatile("" ::: "memory"); /* the tiles read what has been written before */
    if (accumulate) {
        _tile_loadd(0, y, 4 * y_row); _tile_loadd(1, y + 16, 4 * y_row);
        _tile_loadd(2, below, 4 * y_row); _tile_loadd(3, below + 16, 4 * y_row);
    } else {
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    }
    for (int64_t k = 0; k < depth; k += pairs) {
        _tile_loadd(4, a + k, 4 * a_row); _tile_loadd(6, b + k * b_row, 4 * b_row);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + k * b_row + 16, 4 * b_row);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + TILE_ROWS * a_row + k, 4 * a_row);
        _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, y, 4 * y_row); _tile_stored(1, y + 16, 4 * y_row);
    _tile_stored(2, below, 4 * y_row); _tile_stored(3, below + 16, 4 * y_row);
    __asm__ volatile("" ::: "memory");
}
