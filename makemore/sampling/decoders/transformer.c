/* The transformer, one token a row: what TransformerStepper.step computes, in its layouts, without the
   cost of calling numpy. Every row's sums are made in an order of their own, whatever rows are beside it. */

#include "vectors.h"

#define TILE (LANES == 16 ? 8 : 6)
#define ROWS 64 /* that go through all layers together: their vectors stay in the nearest cache but one */

struct linear {
    const float *weight; /* (out / PANEL, in, PANEL), what is missing in the last panel being zero */
    const float *bias;   /* (out,) or NULL */
    int64_t in, out;
};

struct model {
    int64_t layers, heads, width, slots, modern, boundary;
    const struct linear *linears; /* of each layer: qkv, out, up, down */
    struct linear head;
    const float *embedding; /* (V, C) */
    const float *positions; /* (T, C), gpt2 only */
    const float *turns;     /* (T, 2 H, D / 2) complex */
    const float *mixers;    /* (K, 2 L, K, C) */
    float eps, head_eps;
};

struct state {
    int64_t rows, room, at, slot;
    int64_t *starts;              /* (B,) */
    float *keys, *values, *rings; /* (L, B, H, D, T), (L, B, H, T, D), (2 L, K, B, C) or NULL */
};

const int64_t panel = PANEL;

int64_t workspace(const struct model *m, int64_t room) { /* floats */
    return ROWS * m->width * 9 + room;
}

/* y += x @ w for a tile of rows and of vectors, both known to the compiler; w's rows are `stride` apart. */
INLINE void tile(int rows, int vecs, const float *x, int64_t x_stride, int64_t in, const float *w,
                 int64_t stride, float *y, int64_t y_stride) {
    vec sums[8][2];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vecs; v++) sums[r][v] = *(const vec *)(y + r * y_stride + v * LANES);
    for (int64_t k = 0; k < in; k++)
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vecs; v++)
                sums[r][v] += x[r * x_stride + k] * *(const vec *)(w + k * stride + v * LANES);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vecs; v++) *(vec *)(y + r * y_stride + v * LANES) = sums[r][v];
}

/* y (1, columns) += x (1, in) @ w */
static void row(const float *x, int64_t in, const float *w, int64_t stride, float *y, int64_t columns) {
    int64_t c = 0;
    for (; c + PANEL <= columns; c += PANEL) tile(1, 2, x, 0, in, w + c, stride, y + c, 0);
    for (; c + LANES <= columns; c += LANES) tile(1, 1, x, 0, in, w + c, stride, y + c, 0);
    for (; c < columns; c++)
        for (int64_t k = 0; k < in; k++) y[c] += x[k] * w[k * stride + c];
}

/* y (rows, out) += x (rows, in) @ weight + bias, or = where it is to begin anew */
static void linear(const struct linear *l, const float *x, float *y, int64_t rows, int anew) {
    int64_t in = l->in, out = l->out;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < out; c++)
            y[r * out + c] = (anew ? 0 : y[r * out + c]) + (l->bias ? l->bias[c] : 0);
    for (int64_t c = 0; c < out; c += PANEL) {
        const float *w = l->weight + c * in;
        int64_t r = 0;
        if (c + PANEL <= out) {
            for (; r + TILE <= rows; r += TILE) tile(TILE, 2, x + r * in, in, in, w, PANEL, y + r * out + c, out);
            for (; r + 2 <= rows; r += 2) tile(2, 2, x + r * in, in, in, w, PANEL, y + r * out + c, out);
        }
        for (; r < rows; r++)
            row(x + r * in, in, w, PANEL, y + r * out + c, out - c < PANEL ? out - c : PANEL);
    }
}

/* Without gain and bias, and divided by the root of the width. */
static void norm(const struct model *m, const float *x, float *y) {
    int64_t width = m->width;
    float mean = m->modern ? 0 : sum(x, width) / width;
    for (int64_t c = 0; c < width; c++) y[c] = x[c] - mean;
    float scale = 1 / sqrtf(dot(y, y, width) + m->eps);
    for (int64_t c = 0; c < width; c++) y[c] *= scale;
}

/* The norm, then the nth convolution, of which the norm's output is the newest input. */
static void mix(const struct model *m, const struct state *s, int64_t nth, int64_t b, const float *x, float *y) {
    int64_t width = m->width, slots = m->slots;
    if (!s->rings) {
        norm(m, x, y);
        return;
    }
    float *ring = s->rings + (nth * slots * s->rows + b) * width;
    const float *mixer = m->mixers + (s->slot * 2 * m->layers + nth) * slots * width;
    norm(m, x, ring + s->slot * s->rows * width);
    for (int64_t c = 0; c < width; c++) y[c] = ring[c] * mixer[c];
    for (int64_t k = 1; k < slots; k++)
        for (int64_t c = 0; c < width; c++) y[c] += ring[k * s->rows * width + c] * mixer[k * width + c];
}

/* Of one row: puts its key and value into the caches, and what its heads saw, side by side, into y. */
static void attend(const struct model *m, const struct state *s, int64_t l, int64_t b, float *qkv, float *scores,
                   float *y) {
    int64_t heads = m->heads, width = m->width, size = width / heads, room = s->room, at = s->at;
    int64_t first = s->starts[b], seen = at + 1 - first;
    for (int64_t i = 0; m->modern && i < 2 * heads; i++) {
        float *x = qkv + i * size, scale = 1 / sqrtf(dot(x, x, size) + m->head_eps);
        const float *turn = m->turns + (at * 2 * heads + i) * size;
        for (int64_t j = 0; j < size; j += 2) {
            float re = x[j] * scale, im = x[j + 1] * scale;
            x[j] = re * turn[j] - im * turn[j + 1];
            x[j + 1] = re * turn[j + 1] + im * turn[j];
        }
    }
    for (int64_t h = 0; h < heads; h++) {
        int64_t head = ((l * s->rows + b) * heads + h) * size * room;
        float *keys = s->keys + head, *values = s->values + head, *mixed = y + h * size;
        for (int64_t d = 0; d < size; d++) keys[d * room + at] = qkv[width + h * size + d];
        memcpy(values + at * size, qkv + 2 * width + h * size, size * sizeof(float));
        memset(scores, 0, seen * sizeof(float));
        row(qkv + h * size, size, keys + first, room, scores, seen);
        float most = 0;
        if (!m->modern) /* of normalised queries and keys, no score passes sqrt(D) */
            for (int64_t t = 0; t < seen; t++) most = t == 0 || scores[t] > most ? scores[t] : most;
        for (int64_t t = 0; t < seen; t++) scores[t] = exponential(scores[t] - most);
        float total = sum(scores, seen);
        memset(mixed, 0, size * sizeof(float));
        row(scores, seen, values + first * size, size, mixed, size);
        for (int64_t d = 0; d < size; d++) mixed[d] /= total;
    }
}

/* Keys and values of the tokens from `gone` on move to the front; keys are turned by `back` (D / 2) complex. */
void move(const struct model *m, const struct state *s, int64_t gone, int64_t keep, const float *back) {
    int64_t size = m->width / m->heads, room = s->room;
    for (int64_t head = 0; head < m->layers * s->rows * m->heads; head++) {
        float *keys = s->keys + head * size * room, *values = s->values + head * size * room;
        for (int64_t d = 0; d < size; d += 2) {
            float *re = keys + d * room, *im = re + room;
            for (int64_t t = 0; t < keep; t++) {
                float a = re[gone + t], b = im[gone + t];
                re[t] = a * back[d] - b * back[d + 1];
                im[t] = b * back[d] + a * back[d + 1];
            }
        }
        memmove(values, values + gone * size, keep * size * sizeof(float));
    }
}

static void activate(int modern, float *x, int64_t n) {
    if (modern)
        for (int64_t i = 0; i < n; i++) x[i] = x[i] > 0 ? 4 * x[i] * x[i] : 0; /* a quarter of it is in what follows */
    else
        for (int64_t i = 0; i < n; i++)
            x[i] /= 1 + exponential(-1.5957691216f * (x[i] + 0.044715f * x[i] * x[i] * x[i]));
}

/* Nothing is seen of what stands before a row's document. */
static void begin_document(const struct model *m, const struct state *s, int64_t b) {
    s->starts[b] = s->at;
    for (int64_t i = 0; s->rings && i < 2 * m->layers * m->slots; i++)
        memset(s->rings + (i * s->rows + b) * m->width, 0, m->width * sizeof(float));
}

/* Logits (B, V) after one more token a row. */
void step(const struct model *m, const struct state *s, const int64_t *ids, float *work, float *logits) {
    int64_t width = m->width;
    float *x = work, *h = x + ROWS * width, *wide = h + ROWS * width, *mixed = wide + ROWS * 4 * width,
          *scores = mixed + ROWS * width;
    for (int64_t begin = 0; begin < s->rows; begin += ROWS) {
        int64_t rows = s->rows - begin < ROWS ? s->rows - begin : ROWS;
        for (int64_t r = 0; r < rows; r++) {
            if (ids[begin + r] == m->boundary) begin_document(m, s, begin + r);
            const float *position = m->modern ? NULL : m->positions + (s->at - s->starts[begin + r]) * width;
            for (int64_t c = 0; c < width; c++)
                x[r * width + c] = m->embedding[ids[begin + r] * width + c] + (position ? position[c] : 0);
        }
        for (int64_t l = 0; l < m->layers; l++) {
            const struct linear *qkv = m->linears + 4 * l, *out = qkv + 1, *up = qkv + 2, *down = qkv + 3;
            for (int64_t r = 0; r < rows; r++) mix(m, s, 2 * l, begin + r, x + r * width, h + r * width);
            linear(qkv, h, wide, rows, 1);
            for (int64_t r = 0; r < rows; r++)
                attend(m, s, l, begin + r, wide + r * 3 * width, scores, mixed + r * width);
            linear(out, mixed, x, rows, 0);
            for (int64_t r = 0; r < rows; r++) mix(m, s, 2 * l + 1, begin + r, x + r * width, h + r * width);
            linear(up, h, wide, rows, 1);
            activate(m->modern, wide, rows * 4 * width);
            linear(down, wide, x, rows, 0);
        }
        for (int64_t r = 0; r < rows; r++) norm(m, x + r * width, h + r * width);
        linear(&m->head, h, logits + begin * m->head.out, rows, 1);
    }
}
