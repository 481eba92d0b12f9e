/* One decoding step of the transformer: one new token for each row of the batch. The order of a row's
   sums doesn't depend on the other rows, so neither do its logits.

   Shapes: B rows, L layers, H heads, D the head's size, C the width, K the width of the short convolutions, T the
   capacity of the cache. */

#include "matmul.h"

#include "layers.h"

#define LAYER_NORM_EPS 1e-5f
#define MAX_SCORE 60 /* exp of a larger one may overflow when summed */
#define ROWS 64 /* rows that go through all layers together, so that their vectors stay in the second-level cache */

struct linear {
    const float *weight; /* (out / PANEL, in, PANEL), zero past `out` */
    const float *bias;   /* (out,) or NULL */
    int64_t in, out;
};

struct model {
    int64_t layers, heads, width, taps, modern, boundary;
    float score_scale; /* modern only */
    const struct linear *linears; /* of each layer: qkv, out, up, down */
    struct linear head;
    const float *embedding;       /* (V, C) */
    const float *positions;       /* (T, C), gpt2 only */
    const float *cos, *sin;       /* (T, D / 2), modern only */
    const float *convs;           /* (2 L, K, C) or NULL */
    const float *gates;           /* (L, H, C) or NULL */
};

struct cache {
    int64_t rows, capacity, position, slot; /* slot: of the newest input in the rings */
    int64_t *starts;                    /* (B,): where each row's document starts */
    float *keys, *values, *rings;       /* (L, B, H, D, T), (L, B, H, T, D), (2 L, K, B, C) or NULL */
};

const int64_t panel = PANEL, sizeof_linear = sizeof(struct linear), sizeof_model = sizeof(struct model),
              sizeof_cache = sizeof(struct cache);

int64_t workspace(const struct model *m, int64_t capacity) { /* floats */
    return ROWS * m->width * 9 + capacity;
}

/* y (rows, out) = or += x (rows, in) @ weight + bias */
static void linear_forward(const struct linear *l, const float *x, float *y, int64_t rows, int accumulate) {
    int64_t in = l->in, out = l->out;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < out; c++)
            y[r * out + c] = (accumulate ? y[r * out + c] : 0) + (l->bias ? l->bias[c] : 0);
    for (int64_t c = 0; c < out; c += PANEL) {
        const float *w = l->weight + c * in;
        int64_t r = 0;
        if (c + PANEL <= out) {
            for (; r + TILE <= rows; r += TILE) matmul_tile(x + r * in, in, w, in, y + r * out + c, out, 1);
            for (; r + 2 <= rows; r += 2) tile_of(2, 2, x + r * in, in, w, PANEL, in, y + r * out + c, out, 1);
        }
        for (; r < rows; r++) matvec(x + r * in, in, w, PANEL, y + r * out + c, out - c < PANEL ? out - c : PANEL);
    }
}

/* RMSNorm, or LayerNorm whose gain and bias are part of the next linear layer. */
static void norm(const struct model *m, const float *x, float *y) {
    int64_t width = m->width;
    if (m->modern) {
        rms_norm(x, width, y);
        return;
    }
    float mean = sum(x, width) / width;
    for (int64_t c = 0; c < width; c++) y[c] = x[c] - mean;
    float scale = 1 / sqrtf(dot(y, y, width) / width + LAYER_NORM_EPS);
    for (int64_t c = 0; c < width; c++) y[c] *= scale;
}

/* The norm, then the nth short convolution over it and the inputs in its ring. */
static void norm_conv(const struct model *m, const struct cache *s, int64_t nth, int64_t b, const float *x, float *y) {
    int64_t width = m->width, taps = m->taps;
    if (!s->rings) {
        norm(m, x, y);
        return;
    }
    const float *weight = m->convs + nth * taps * width;
    float *ring = s->rings + (nth * taps * s->rows + b) * width;
    float *newest = ring + s->slot * s->rows * width;
    norm(m, x, newest);
    memcpy(y, newest, width * sizeof(float));
    for (int64_t k = 0; k < taps; k++) {
        const float *input = ring + (s->slot - k + taps) % taps * s->rows * width;
        for (int64_t c = 0; c < width; c++) y[c] += input[c] * weight[k * width + c];
    }
}

/* Write one row's key and value into the cache; y (C,) = the heads' outputs for the layer's input x (C,). */
static void attention_step(const struct model *m, const struct cache *s, int64_t l, int64_t b, const float *x,
                           float *qkv, float *scores, float *y) {
    int64_t heads = m->heads, width = m->width, size = width / heads, capacity = s->capacity, t = s->position;
    int64_t first = s->starts[b], visible = t + 1 - first;
    float root = sqrtf(size), query_divisor = root / m->score_scale;
    for (int64_t i = 0; m->modern && i < 2 * heads; i++)
        qk_norm_rope(qkv + i * size, m->cos + t * size / 2, m->sin + t * size / 2, i < heads ? query_divisor : 1, size);
    for (int64_t c = 0; !m->modern && c < width; c++) qkv[c] /= root;
    for (int64_t h = 0; h < heads; h++) {
        int64_t offset = ((l * s->rows + b) * heads + h) * size * capacity;
        float *keys = s->keys + offset, *values = s->values + offset, *out = y + h * size;
        for (int64_t d = 0; d < size; d++) keys[d * capacity + t] = qkv[width + h * size + d];
        memcpy(values + t * size, qkv + 2 * width + h * size, size * sizeof(float));
        memset(scores, 0, visible * sizeof(float));
        matvec(qkv + h * size, size, keys + first, capacity, scores, visible);
        float max = 0;
        if (!m->modern || root * m->score_scale > MAX_SCORE) /* else normalised queries and keys limit the scores */
            for (int64_t i = 0; i < visible; i++) max = i == 0 || scores[i] > max ? scores[i] : max;
        exp_inplace(scores, visible, max);
        float total = sum(scores, visible);
        memset(out, 0, size * sizeof(float));
        matvec(scores, visible, values + first * size, size, out, size);
        float factor = 1 / total;
        if (m->gates) factor *= 2 / (1 + fast_exp(-dot(x, m->gates + (l * heads + h) * width, width)));
        for (int64_t d = 0; d < size; d++) out[d] *= factor;
    }
}

/* Move the last `n_keep` tokens, from `dropped` on, to the front of the cache, and rotate keys back by `dropped`. */
void shift_cache(const struct model *m, const struct cache *s, int64_t dropped, int64_t n_keep) {
    int64_t size = m->width / m->heads, half = size / 2, capacity = s->capacity;
    const float *cos = m->cos + dropped * half, *sin = m->sin + dropped * half;
    for (int64_t head = 0; head < m->layers * s->rows * m->heads; head++) {
        float *keys = s->keys + head * size * capacity, *values = s->values + head * size * capacity;
        for (int64_t d = 0; d < half; d++) {
            float *first = keys + d * capacity, *second = first + half * capacity;
            for (int64_t t = 0; t < n_keep; t++) {
                float a = first[dropped + t], b = second[dropped + t];
                first[t] = a * cos[d] + b * sin[d];
                second[t] = b * cos[d] - a * sin[d];
            }
        }
        memmove(values, values + dropped * size, n_keep * size * sizeof(float));
    }
}

/* A boundary token hides everything before it from its row. */
static void begin_document(const struct model *m, const struct cache *s, int64_t b) {
    s->starts[b] = s->position;
    for (int64_t i = 0; s->rings && i < 2 * m->layers * m->taps; i++)
        memset(s->rings + (i * s->rows + b) * m->width, 0, m->width * sizeof(float));
}

static void embed(const struct model *m, const struct cache *s, int64_t b, int64_t id, float *x) {
    if (id == m->boundary) begin_document(m, s, b);
    memcpy(x, m->embedding + id * m->width, m->width * sizeof(float));
    if (m->modern) return;
    const float *position = m->positions + (s->position - s->starts[b]) * m->width;
    for (int64_t c = 0; c < m->width; c++) x[c] += position[c];
}

/* logits (B, V) after one more token per row; ids (B,). `work` has workspace() floats. */
void step(const struct model *m, const struct cache *s, const int64_t *ids, float *work, float *logits) {
    int64_t width = m->width;
    float *x = work, *h = x + ROWS * width, *wide = h + ROWS * width, *mixed = wide + ROWS * 4 * width,
          *scores = mixed + ROWS * width;
    for (int64_t begin = 0; begin < s->rows; begin += ROWS) {
        int64_t rows = s->rows - begin < ROWS ? s->rows - begin : ROWS;
        for (int64_t r = 0; r < rows; r++) embed(m, s, begin + r, ids[begin + r], x + r * width);
        for (int64_t l = 0; l < m->layers; l++) {
            const struct linear *qkv = m->linears + 4 * l, *out = qkv + 1, *up = qkv + 2, *down = qkv + 3;
            for (int64_t r = 0; r < rows; r++) norm_conv(m, s, 2 * l, begin + r, x + r * width, h + r * width);
            linear_forward(qkv, h, wide, rows, 0);
            for (int64_t r = 0; r < rows; r++)
                attention_step(m, s, l, begin + r, h + r * width, wide + r * 3 * width, scores, mixed + r * width);
            linear_forward(out, mixed, x, rows, 1);
            for (int64_t r = 0; r < rows; r++) norm_conv(m, s, 2 * l + 1, begin + r, x + r * width, h + r * width);
            linear_forward(up, h, wide, rows, 0);
            if (m->modern)
                relu_squared(wide, rows * 4 * width);
            else
                gelu(wide, rows * 4 * width);
            linear_forward(down, wide, x, rows, 1);
        }
        for (int64_t r = 0; r < rows; r++) norm(m, x + r * width, h + r * width);
        linear_forward(&m->head, h, logits + begin * m->head.out, rows, 0);
    }
}
