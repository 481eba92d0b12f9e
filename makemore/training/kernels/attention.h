/* Causal attention of one head within documents, and its gradient. Scores aren't kept: queries and keys are normalised,
   so that no score passes the root of the head's size, exponentials need no maximum, and computing them again costs
   less than memory would.

   Of a block of rows, keys count from `first` of the block's first row on; what lies outside is never read. */

struct scratch { /* of one head; L is the length, D the head's size, in whole panels for `out` */
    float *weights, *slopes; /* (L, L): softmax; gradient with respect to it */
    num *given, *scores;     /* (L, L): weights after dropout; gradient with respect to scores */
    unit *turned;            /* (L / PANEL, L / STEP, PANEL) */
    unit *left, *right;      /* (L, D) in panels */
    float *out;              /* (L, D) */
    int64_t *ends;           /* (L / BLOCK,): of a block of keys, where the last query ends that sees it */
};

struct head {
    int64_t length, size, width; /* L, D, and numbers from a row to the next of the model's width */
    const int64_t *starts;       /* (L,): where each token's document starts */
    const num *q, *k, *v;        /* (L, D) each, rows 3 * width apart; q is divided by the root of D */
    uint32_t seed;
    float dropout;
};

INLINE int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

INLINE int64_t first(const int64_t *starts, int64_t row) { return starts[row / BLOCK * BLOCK] / BLOCK * BLOCK; }

/* y (L, L) = a (L, D) @ b.T of what queries see; a's rows are `row` units apart, b is in panels of its rows */
static void pairs(const struct head *h, const num *a, int64_t row, const unit *b, float *y) {
    int64_t length = h->length, depth = h->size / STEP;
    for (int64_t r = 0; r < length; r += TILE)
        for (int64_t c = first(h->starts, r) / PANEL * PANEL; c < r / BLOCK * BLOCK + BLOCK; c += PANEL)
            tile((const unit *)a + r * row, row, 1, b + c * depth, depth, y + r * length + c, length, 0);
}

/* out (L, D) = a (L, L) @ b, of what queries see; b in panels of its columns */
static void gather(const struct head *h, const num *a, const unit *b, float *out) {
    int64_t length = h->length, depth = length / STEP, columns = padded(h->size, PANEL);
    for (int64_t r = 0; r < length; r += TILE) {
        int64_t from = first(h->starts, r), to = r / BLOCK * BLOCK + BLOCK;
        for (int64_t c = 0; c < columns; c += PANEL)
            tile((const unit *)(a + r * length + from), depth, 1, b + c * depth + from / STEP * PANEL,
                 (to - from) / STEP, out + r * columns + c, columns, 0);
    }
}

/* out (L, D) = a.T @ b: what keys get from the queries that see them */
static void scatter(const struct head *h, const struct scratch *s, const num *a, const unit *b) {
    int64_t length = h->length, depth = length / STEP, columns = padded(h->size, PANEL);
    for (int64_t c = 0; c < length; c += PANEL) {
        int64_t end = s->ends[(c + PANEL - 1) / BLOCK];
        by_columns(a + c * length + c, length, end - c, PANEL, s->turned + c * depth + c / STEP * PANEL);
    }
    for (int64_t r = 0; r < length; r += TILE) {
        int64_t from = r / BLOCK * BLOCK, end = s->ends[r / BLOCK];
        for (int64_t c = 0; c < columns; c += PANEL)
            tile(turned(s->turned, depth, r) + from / STEP * PANEL, 1, PANEL, b + c * depth + from / STEP * PANEL,
                 (end - from) / STEP, s->out + r * columns + c, columns, 0);
    }
}

static void soften(const struct head *h, const struct scratch *s) {
    int64_t length = h->length;
    for (int64_t t = 0; t < length; t++) {
        int64_t from = h->starts[t], low = first(h->starts, t), high = t / BLOCK * BLOCK + BLOCK;
        float *weights = s->weights + t * length;
        num *given = s->given + t * length;
        for (int64_t i = low; i < high; i++) weights[i] = exponential(weights[i]);
        for (int64_t i = low; i < from; i++) weights[i] = 0;
        for (int64_t i = t + 1; i < high; i++) weights[i] = 0;
        float scale = 1 / sum(weights + low, high - low);
        for (int64_t i = low; i < high; i++) weights[i] *= scale;
        if (h->dropout > 0)
            for (int64_t i = low; i < high; i++)
                given[i] = narrow(weights[i] * kept(h->dropout, h->seed, t * length + i));
        else
            narrow_all(weights + low, given + low, high - low);
    }
}

static void weigh(const struct head *h, const struct scratch *s) {
    by_rows(h->k, 3 * h->width, h->length, h->size, s->left);
    pairs(h, h->q, 3 * h->width / STEP, s->left, s->weights);
    soften(h, s);
}

/* y (L, D), rows `width` apart = softmax(q @ k.T) @ v */
static void attend(const struct head *h, const struct scratch *s, num *y) {
    weigh(h, s);
    by_columns(h->v, 3 * h->width, h->length, h->size, s->right);
    gather(h, s->given, s->right, s->out);
    for (int64_t t = 0; t < h->length; t++)
        narrow_all(s->out + t * padded(h->size, PANEL), y + t * h->width, h->size);
}

/* The gradient with respect to scores, from that with respect to what values were weighed by. */
static void harden(const struct head *h, const struct scratch *s) {
    int64_t length = h->length;
    for (int64_t t = 0; t < length; t++) {
        int64_t low = first(h->starts, t), high = t / BLOCK * BLOCK + BLOCK;
        float *slopes = s->slopes + t * length;
        const float *weights = s->weights + t * length;
        num *scores = s->scores + t * length;
        if (h->dropout > 0)
            for (int64_t i = low; i < high; i++) slopes[i] *= kept(h->dropout, h->seed, t * length + i);
        float mean = dot(weights + low, slopes + low, high - low);
        for (int64_t i = low; i < high; i++) scores[i] = narrow(weights[i] * (slopes[i] - mean));
    }
}

/* Of a row, whatever the head. */
static void find_ends(const int64_t *starts, int64_t length, int64_t *ends) {
    for (int64_t r = 0, last = 0; r < length; r += BLOCK) {
        while (last < length && first(starts, last) <= r) last += BLOCK;
        ends[r / BLOCK] = last;
    }
}

static void put(const struct head *h, const float *out, float *y) {
    for (int64_t t = 0; t < h->length; t++)
        memcpy(y + t * 3 * h->width, out + t * padded(h->size, PANEL), h->size * sizeof(float));
}

/* From dy (L, D), rows `width` apart, gradients dq, dk, dv, rows 3 * width apart. */
static void attend_back(const struct head *h, const struct scratch *s, const num *dy, float *dq, float *dk, float *dv) {
    int64_t length = h->length, size = h->size, stride = 3 * h->width;
    weigh(h, s);
    by_rows(h->v, stride, length, size, s->right);
    pairs(h, dy, h->width / STEP, s->right, s->slopes);
    harden(h, s);
    by_columns(dy, h->width, length, size, s->right);
    scatter(h, s, s->given, s->right);
    put(h, s->out, dv);
    by_columns(h->q, stride, length, size, s->right);
    scatter(h, s, s->scores, s->right);
    put(h, s->out, dk);
    by_columns(h->k, stride, length, size, s->right);
    gather(h, s->scores, s->right, s->out);
    put(h, s->out, dq);
}
