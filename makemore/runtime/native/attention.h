/* Causal attention of one head within documents, forward and backward.

   Scores aren't stored. Queries and keys are normalised, which limits the scores: softmax needn't subtract the maximum,
   and recomputing scores in the backward pass costs less than the memory traffic.

   L is the row's length, a multiple of PANEL; D the head's size. Rows are processed in blocks of BLOCK. Keys of a block
   are visible from the first key of its first row's document, rounded down to a block; other keys are never read. */

struct attn_work { /* scratch memory for one head */
    float *probs, *dprobs;     /* (L, L): softmax of the scores; its gradient */
    elem *dropped, *dscores;   /* (L, L): probabilities after dropout; the scores' gradient */
    elem *transposed;          /* (L, L) */
    pair *packed_a, *packed_b; /* (L, D) */
    float *out;                /* (L, D rounded up to PANEL) */
    int64_t *key_end;          /* (L / BLOCK,): one past the last query that sees each block of keys */
};

struct attn_head {
    int64_t length, size, width, heads; /* L, D, and the model's width and number of heads */
    const int64_t *starts;              /* (L,): where each token's document starts */
    const float *gates;                 /* (L,), `heads` apart: half the factor of each output; or NULL */
    const elem *q, *k, *v;              /* (L, D), rows 3 * width apart; q is scaled */
    uint32_t seed;
    float dropout;
};

/* The first visible key of a row's block. */
INLINE int64_t block_start(const int64_t *starts, int64_t row) { return starts[row / BLOCK * BLOCK] / BLOCK * BLOCK; }

/* y (L, L) = a (L, D) @ b.T at visible positions; a's rows are `row` pairs apart, b is packed by rows. */
static void causal_qk(const struct attn_head *h, const elem *a, int64_t row, const pair *b, float *y) {
    int64_t length = h->length, depth = h->size / STEP;
    begin_tiles(depth);
    for (int64_t r = 0; r < length; r += TILE)
        for (int64_t c = block_start(h->starts, r) / PANEL * PANEL; c < r / BLOCK * BLOCK + BLOCK; c += PANEL)
            matmul_tile((const pair *)a + r * row, row, b + c * depth, depth, y + r * length + c, length, 0);
}

/* out (L, D) = a (L, L) @ b over visible keys; b is packed by columns. */
static void causal_pv(const struct attn_head *h, const elem *a, const pair *b, float *out) {
    int64_t length = h->length, depth = length / STEP, columns = round_up(h->size, PANEL);
    begin_tiles(BLOCK / STEP);
    for (int64_t r = 0; r < length; r += TILE) {
        int64_t from = block_start(h->starts, r), to = r / BLOCK * BLOCK + BLOCK;
        for (int64_t c = 0; c < columns; c += PANEL)
            matmul_tile((const pair *)(a + r * length + from), depth, b + c * depth + from / STEP * PANEL,
                        (to - from) / STEP, out + r * columns + c, columns, 0);
    }
}

/* s->out (L, D) = a.T @ b over the queries that see each key; b is packed by columns. */
static void causal_ptv(const struct attn_head *h, const struct attn_work *s, const elem *a, const pair *b) {
    int64_t length = h->length, depth = length / STEP, columns = round_up(h->size, PANEL);
    for (int64_t c = 0; c < length; c += PANEL) {
        int64_t end = round_up(s->key_end[(c + PANEL - 1) / BLOCK], PANEL);
        transpose(a + c * length + c, length, end - c, PANEL, s->transposed + c * length + c, length);
    }
    begin_tiles(BLOCK / STEP);
    for (int64_t r = 0; r < length; r += TILE) {
        int64_t from = r / BLOCK * BLOCK, end = s->key_end[r / BLOCK];
        for (int64_t c = 0; c < columns; c += PANEL)
            matmul_tile((const pair *)(s->transposed + r * length + from), depth, b + c * depth + from / STEP * PANEL,
                        (end - from) / STEP, s->out + r * columns + c, columns, 0);
    }
}

/* x, with zeros where the position, that of the first lane plus the lane, isn't from `from` to `to` */
INLINE vec only_between(vec x, int64_t first, int64_t from, int64_t to) {
    lanes position = (lanes)(lane_numbers() + (uint32_t)first);
    return (vec)((lanes)x & (position >= (int32_t)from) & (position <= (int32_t)to));
}

static void causal_softmax(const struct attn_head *h, const struct attn_work *s) {
    int64_t length = h->length;
    for (int64_t t = 0; t < length; t++) {
        int64_t low = block_start(h->starts, t), high = t / BLOCK * BLOCK + BLOCK, at = t * length;
        float *probs = s->probs + at;
        vec sums = {0};
        for (int64_t i = low; i < high; i += LANES) {
            vec p = only_between(exp_small(*(vec *)(probs + i)), i, h->starts[t], t);
            *(vec *)(probs + i) = p;
            sums += p;
        }
        float scale = 1 / reduce_add(sums);
        for (int64_t i = low; i < high; i += LANES) {
            vec p = *(vec *)(probs + i) * scale;
            *(vec *)(probs + i) = p;
            if (h->dropout > 0) p *= dropout_factors(h->dropout, h->seed, at + i);
            store_elems(s->dropped + at + i, p);
        }
    }
}

static void attn_probs(const struct attn_head *h, const struct attn_work *s) {
    pack_rows(h->k, 3 * h->width, h->length, h->size, s->packed_a);
    causal_qk(h, h->q, 3 * h->width / STEP, s->packed_a, s->probs);
    causal_softmax(h, s);
}

/* y (L, D), rows `width` apart, = softmax(q @ k.T) @ v */
static void attention_forward(const struct attn_head *h, const struct attn_work *s, elem *y) {
    attn_probs(h, s);
    pack_columns(h->v, 3 * h->width, h->length, h->size, s->packed_b);
    causal_pv(h, s->dropped, s->packed_b, s->out);
    for (int64_t t = 0; t < h->length; t++) {
        float *out = s->out + t * round_up(h->size, PANEL);
        for (int64_t i = 0; h->gates && i < h->size; i++) out[i] *= 2 * h->gates[t * h->heads];
        to_elems(out, y + t * h->width, h->size);
    }
}

/* Compute dscores from the probabilities and their gradient. */
static void softmax_backward(const struct attn_head *h, const struct attn_work *s) {
    int64_t length = h->length;
    for (int64_t t = 0; t < length; t++) {
        int64_t low = block_start(h->starts, t), high = t / BLOCK * BLOCK + BLOCK;
        float *dprobs = s->dprobs + t * length;
        const float *probs = s->probs + t * length;
        vec sums = {0};
        for (int64_t i = low; i < high; i += LANES) {
            vec *grad = (vec *)(dprobs + i);
            if (h->dropout > 0) *grad *= dropout_factors(h->dropout, h->seed, t * length + i);
            sums += *(const vec *)(probs + i) * *grad;
        }
        float mean = reduce_add(sums);
        for (int64_t i = low; i < high; i += LANES)
            store_elems(s->dscores + t * length + i, *(const vec *)(probs + i) * (*(vec *)(dprobs + i) - mean));
    }
}

/* Compute key_end for a row of the batch; it is the same for every head. */
static void find_key_ends(const int64_t *starts, int64_t length, int64_t *key_end) {
    for (int64_t r = 0, last = 0; r < length; r += BLOCK) {
        while (last < length && block_start(starts, last) <= r) last += BLOCK;
        key_end[r / BLOCK] = last;
    }
}

static void store_head(const struct attn_head *h, const float *out, float *y) {
    for (int64_t t = 0; t < h->length; t++)
        memcpy(y + t * 3 * h->width, out + t * round_up(h->size, PANEL), h->size * sizeof(float));
}

/* Compute dq, dk and dv, with rows 3 * width apart, from dy (L, D), with rows `width` apart. */
static void attention_backward(const struct attn_head *h, const struct attn_work *s, const elem *dy, float *dq, float *dk,
                               float *dv) {
    int64_t length = h->length, size = h->size, stride = 3 * h->width;
    attn_probs(h, s);
    pack_rows(h->v, stride, length, size, s->packed_b);
    causal_qk(h, dy, h->width / STEP, s->packed_b, s->dprobs);
    softmax_backward(h, s);
    pack_columns(dy, h->width, length, size, s->packed_b);
    causal_ptv(h, s, s->dropped, s->packed_b);
    store_head(h, s->out, dv);
    pack_columns(h->q, stride, length, size, s->packed_b);
    causal_ptv(h, s, s->dscores, s->packed_b);
    store_head(h, s->out, dk);
    pack_columns(h->k, stride, length, size, s->packed_b);
    causal_pv(h, s->dscores, s->packed_b, s->out);
    store_head(h, s->out, dq);
}
