/* Loss and gradients of the modern transformer, forward and backward by hand, a row of the batch at a time: all that
   a row's layers leave for the way back stays near the processor. Threads take rows each, and have gradients of their own.

   Shapes: L is a row's length in whole panels, C the width, V the vocabulary in whole panels. What lies between the
   last token and L is zero everywhere, and a document of its own at each place. */

#include "products.h"

#include "dropout.h"

#include "attention.h"

#define EPS 1e-6f

const int64_t panel = PANEL;

struct model {
    int64_t layers, heads, width, vocab, taps; /* taps of the convolutions, 0: there are none */
    float dropout;
    const float *cos, *sin;      /* (T, D / 2), T a multiple of PANEL */
    const float *const *weights; /* embedding (V, C), head (V, C), then of each layer qkv, out, up, down and its
                                    convolutions */
    unit *packed;                /* what `prepare` makes of head and layers */
};

struct batch {
    int64_t length, first, last; /* rows from first to before last */
    const int64_t *inputs, *targets, *starts; /* (B, T) each; targets below 0 don't count */
    uint32_t seed;
};

enum { QKV, OUT, UP, DOWN, LINEARS };
enum { EMBEDDED, MIXED, FED, WEIGHED }; /* where dropout is */

/* A linear layer's weight, (out, in), in panels for either way: y = x @ weight.T, and dx = dy @ weight */
struct linear {
    int64_t out, in;
    unit *there, *back;
};

/* What the first, attention, and the second half of a layer, the wider linears, leave for the way back. */
struct half {
    float *normed, *scales; /* (L, C), (L,) */
    num *mixed;             /* (L, C) after the convolution */
};

struct layer {
    struct half halves[2];
    num *qkv;      /* (L, 3 C): queries and keys are normalised and turned, queries divided by the root of D */
    float *scales; /* (L, 2 H) of queries and keys */
    num *heard;    /* (L, C): what attention gave */
    num *active;   /* (L, 4 C): what relu left */
};

struct work {
    struct layer *layers;
    struct scratch scratch;
    int64_t *starts;                   /* (L,) */
    float *x, *dx, *branch, *wide;     /* (L, C), (L, C), (L, C), (L, 4 C) or (L, V), the wider */
    num *narrow, *square;              /* (L, 4 C) or (L, V); (L, 4 C) */
    float *last_normed, *last_scales;  /* (L, C), (L,) */
    float *first_normed, *first_scales;
    num *last;                         /* (L, C) */
    unit *left, *right;                /* (L, 4 C) or (L, V), (L, 4 C) in panels */
};

/* The nth linear layer, the head being the last; both ways' panels take as much. */
static struct linear linear_of(const struct model *m, int64_t nth) {
    int64_t c = m->width, v = padded(m->vocab, PANEL);
    int64_t out[] = {3 * c, c, 4 * c, c}, in[] = {c, c, c, 4 * c}, before[] = {0, 3, 4, 8};
    int64_t layer = nth / LINEARS, kind = nth % LINEARS, head = layer == m->layers;
    int64_t size = head ? v * c / STEP : out[kind] * in[kind] / STEP;
    unit *at = m->packed + 2 * (12 * layer + before[kind]) * c * c / STEP;
    return (struct linear){head ? v : out[kind], head ? c : in[kind], at, at + size};
}

/* The nth weight in the order of `weights`: where its gradient begins in all of them, in floats. */
static int64_t offset(const struct model *m, int64_t layer, int64_t kind) {
    int64_t c = m->width, before[] = {0, 3 * c, 4 * c, 8 * c, 12 * c, 12 * c + m->taps};
    return (m->vocab + padded(m->vocab, PANEL)) * c + layer * (12 * c + 2 * m->taps) * c + before[kind] * c;
}

static const float *weight_of(const struct model *m, int64_t layer, int64_t kind) {
    return m->weights[2 + layer * (m->taps ? 6 : 4) + kind];
}

int64_t gradients_size(const struct model *m) { return offset(m, m->layers, 0); } /* floats */

int64_t packed_size(const struct model *m) { /* bytes */
    int64_t c = m->width;
    return 2 * (12 * m->layers * c + padded(m->vocab, PANEL)) * c * (int64_t)sizeof(num);
}

/* Weights as products read them, of each `parts`-th linear layer from `part` on; `work`: room for the largest. */
void prepare(const struct model *m, int64_t part, int64_t parts, num *work) {
    for (int64_t nth = part; nth <= m->layers * LINEARS; nth += parts) {
        struct linear l = linear_of(m, nth);
        int64_t head = nth == m->layers * LINEARS, rows = head ? m->vocab : l.out;
        const float *weight = head ? m->weights[1] : weight_of(m, nth / LINEARS, nth % LINEARS);
        narrow_all(weight, work, rows * l.in);
        memset(work + rows * l.in, 0, (l.out - rows) * l.in * sizeof(num));
        by_rows(work, l.in, l.out, l.in, l.there);
        by_columns(work, l.in, l.out, l.in, l.back);
    }
}

static void *take(char **at, int64_t bytes) {
    void *here = *at;
    *at += padded(bytes, 64);
    return here;
}

/* Cuts memory into what a row takes; returns the end. */
static char *arrange(const struct model *m, int64_t length, char *at, struct work *w) {
    int64_t l = length, c = m->width, size = padded(c / m->heads, PANEL), f = sizeof(float), n = sizeof(num);
    int64_t widest = 4 * c > padded(m->vocab, PANEL) ? 4 * c : padded(m->vocab, PANEL);
    w->layers = take(&at, m->layers * sizeof(struct layer));
    w->starts = take(&at, l * sizeof(int64_t));
    w->x = take(&at, l * c * f), w->dx = take(&at, l * c * f), w->branch = take(&at, l * c * f);
    w->wide = take(&at, l * widest * f);
    w->narrow = take(&at, l * widest * n), w->square = take(&at, l * 4 * c * n);
    w->first_normed = take(&at, l * c * f), w->first_scales = take(&at, l * f);
    w->last_normed = take(&at, l * c * f), w->last_scales = take(&at, l * f), w->last = take(&at, l * c * n);
    w->left = take(&at, l * widest * n), w->right = take(&at, l * 4 * c * n);
    struct scratch *s = &w->scratch;
    s->weights = take(&at, l * l * f), s->slopes = take(&at, l * l * f);
    s->given = take(&at, l * l * n), s->scores = take(&at, l * l * n), s->turned = take(&at, l * l * n);
    s->left = take(&at, l * size * n), s->right = take(&at, l * size * n), s->out = take(&at, l * size * f);
    s->ends = take(&at, l / BLOCK * sizeof(int64_t));
    return at;
}

static char *arrange_layer(const struct model *m, int64_t l, char *at, struct layer *layer) {
    int64_t c = m->width, f = sizeof(float), n = sizeof(num);
    for (int i = 0; i < 2; i++) {
        struct half *half = &layer->halves[i];
        half->normed = take(&at, l * c * f), half->scales = take(&at, l * f), half->mixed = take(&at, l * c * n);
    }
    layer->qkv = take(&at, l * 3 * c * n), layer->scales = take(&at, l * 2 * m->heads * f);
    layer->heard = take(&at, l * c * n), layer->active = take(&at, l * 4 * c * n);
    return at;
}

int64_t workspace(const struct model *m, int64_t length) { /* bytes */
    struct work w;
    struct layer layer;
    int64_t l = padded(length, PANEL);
    return arrange(m, l, NULL, &w) - (char *)NULL + m->layers * (arrange_layer(m, l, NULL, &layer) - (char *)NULL) + 64;
}

/* y = x / its root mean square; returns what x was multiplied by */
INLINE float norm(const float *restrict x, int64_t n, float *restrict y) {
    float scale = 1 / sqrtf(dot(x, x, n) / n + EPS);
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale;
    return scale;
}

/* dx += the gradient before the norm, from that after it and from what it gave */
INLINE void norm_back(const float *restrict dy, const float *restrict y, float scale, int64_t n, float *restrict dx) {
    float mean = dot(dy, y, n) / n;
    for (int64_t i = 0; i < n; i++) dx[i] += scale * (dy[i] - y[i] * mean);
}

/* The norm, then the convolution: each channel and a weighted sum of its last values. */
static void mix(const struct model *m, const struct work *w, int64_t length, const float *weight, struct half *half) {
    int64_t c = m->width;
    for (int64_t t = 0; t < length; t++) {
        float *restrict y = half->normed + t * c, *restrict sums = w->branch;
        half->scales[t] = norm(w->x + t * c, c, y);
        memcpy(sums, y, c * sizeof(float));
        for (int64_t k = 0; k < m->taps && k <= t - w->starts[t]; k++)
            for (int64_t i = 0; i < c; i++) sums[i] += (y - k * c)[i] * (weight + k * c)[i];
        narrow_all(sums, half->mixed + t * c, c);
    }
}

/* w->dx += the gradient before both, from dy (L, C) */
static void mix_back(const struct model *m, const struct work *w, int64_t length, const float *weight,
                     const struct half *half, float *dy, float *dweight) {
    int64_t c = m->width;
    for (int64_t t = 0; t < length; t++) {
        const float *restrict now = dy + t * c;
        for (int64_t k = 0; k < m->taps && k <= t - w->starts[t]; k++) {
            const float *restrict y = half->normed + (t - k) * c;
            float *restrict to = dweight + k * c;
            for (int64_t i = 0; i < c; i++) to[i] += now[i] * y[i];
        }
        for (int64_t i = 0; m->taps && i < c; i++) w->branch[i] = now[i] * (1 + weight[i]);
        for (int64_t k = 1; k < m->taps && t + k < length && k <= t + k - w->starts[t + k]; k++) {
            const float *restrict later = now + k * c, *restrict by = weight + k * c;
            for (int64_t i = 0; i < c; i++) w->branch[i] += later[i] * by[i];
        }
        norm_back(m->taps ? w->branch : now, half->normed + t * c, half->scales[t], c, w->dx + t * c);
    }
}

/* of x * y, whose size four divides: heads are too small for wider vectors */
INLINE float dot_head(const float *x, const float *y, int64_t size) {
    quad sums = {0};
    for (int64_t i = 0; i < size; i += 4) sums += *(const quad *)(x + i) * *(const quad *)(y + i);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/* y (D,) = x, each pair (i, i + D / 2) turned by its angle, times scale; the other way round where sign is -1 */
INLINE void turn_head(const float *x, const float *cos, const float *sin, float sign, float scale, int64_t half,
                      float *y) {
    for (int64_t j = 0; j < half; j += 4) {
        quad a = *(const quad *)(x + j), b = *(const quad *)(x + j + half);
        quad c = scale * *(const quad *)(cos + j), s = sign * scale * *(const quad *)(sin + j);
        *(quad *)(y + j) = a * c - b * s;
        *(quad *)(y + j + half) = a * s + b * c;
    }
}

/* Normalise queries and keys, and turn them by their positions' angles; qkv is overwritten. */
static void turn(const struct model *m, int64_t length, float *qkv, struct layer *layer) {
    int64_t c = m->width, size = c / m->heads, half = size / 2;
    for (int64_t t = 0; t < length; t++)
        for (int64_t i = 0; i < 2 * m->heads; i++) {
            float *x = qkv + t * 3 * c + i * size, scale = 1 / sqrtf(dot_head(x, x, size) / size + EPS);
            layer->scales[t * 2 * m->heads + i] = scale;
            if (i < m->heads) scale /= sqrtf(size);
            turn_head(x, m->cos + t * half, m->sin + t * half, 1, scale, half, x);
        }
    narrow_all(qkv, layer->qkv, length * 3 * c);
}

/* dqkv: from the gradient of what attention saw to that of what the linear layer gave */
static void turn_back(const struct model *m, const struct work *w, int64_t length, const struct layer *layer,
                      float *dqkv) {
    int64_t c = m->width, size = c / m->heads, half = size / 2;
    for (int64_t t = 0; t < length; t++) {
        widen_all(layer->qkv + t * 3 * c, w->branch, 2 * c);
        for (int64_t i = 0; i < 2 * m->heads; i++) {
            float *x = dqkv + t * 3 * c + i * size, *y = w->branch + i * size;
            float longer = i < m->heads ? sqrtf(size) : 1; /* queries were divided once, and so is their gradient */
            float mean = dot_head(x, y, size) * longer * longer / size;
            for (int64_t j = 0; j < size; j += 4) *(quad *)(x + j) -= *(quad *)(y + j) * mean;
            float scale = layer->scales[t * 2 * m->heads + i] / longer;
            turn_head(x, m->cos + t * half, m->sin + t * half, -1, scale, half, x);
        }
    }
}

/* w->x += what a branch's last linear layer gives, after dropout */
static void join_branch(const struct model *m, struct work *w, int64_t length, const num *h, const struct linear *l,
                        uint32_t seed) {
    int64_t n = length * m->width;
    if (m->dropout == 0) {
        product(h, l->there, length, l->in / STEP, l->out, w->x, 1);
        return;
    }
    product(h, l->there, length, l->in / STEP, l->out, w->branch, 0);
    drop(w->branch, n, m->dropout, seed);
    for (int64_t i = 0; i < n; i++) w->x[i] += w->branch[i];
}

static struct head head_of(const struct model *m, const struct work *w, const struct layer *layer, int64_t length,
                           int64_t nth, uint32_t seed) {
    int64_t c = m->width, size = c / m->heads;
    const num *q = layer->qkv + nth * size;
    return (struct head){length, size, c, w->starts, q, q + c, q + 2 * c, seed, m->dropout};
}

static void square(const num *restrict x, num *restrict y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = narrow(widen(x[i]) * widen(x[i]));
}

static void layer_there(const struct model *m, struct work *w, int64_t nth, int64_t length, uint32_t seed, int64_t row) {
    struct layer *layer = &w->layers[nth];
    struct linear linears[LINEARS];
    int64_t c = m->width;
    for (int i = 0; i < LINEARS; i++) linears[i] = linear_of(m, nth * LINEARS + i);
    const struct linear *qkv = &linears[QKV], *up = &linears[UP];
    mix(m, w, length, m->taps ? weight_of(m, nth, 4) : NULL, &layer->halves[0]);
    product(layer->halves[0].mixed, qkv->there, length, c / STEP, 3 * c, w->wide, 0);
    turn(m, length, w->wide, layer);
    for (int64_t i = 0; i < m->heads; i++) {
        struct head head = head_of(m, w, layer, length, i, seed_of(seed, row, nth, WEIGHED + i));
        attend(&head, &w->scratch, layer->heard + i * head.size);
    }
    join_branch(m, w, length, layer->heard, &linears[OUT], seed_of(seed, row, nth, MIXED));
    mix(m, w, length, m->taps ? weight_of(m, nth, 5) : NULL, &layer->halves[1]);
    product(layer->halves[1].mixed, up->there, length, c / STEP, 4 * c, w->wide, 0);
    for (int64_t i = 0; i < length * 4 * c; i++) layer->active[i] = narrow(w->wide[i] > 0 ? w->wide[i] : 0);
    square(layer->active, w->square, length * 4 * c);
    join_branch(m, w, length, w->square, &linears[DOWN], seed_of(seed, row, nth, FED));
}

/* dx (L, in) = dy @ weight, and weight's gradient grows by dy.T @ x */
static void linear_back(const struct work *w, int64_t length, const struct linear *l, const num *dy, const num *x,
                        float *dx, float *dweight) {
    product(dy, l->back, length, l->out / STEP, l->in, dx, 0);
    by_columns(dy, l->out, length, l->out, w->left);
    by_columns(x, l->in, length, l->in, w->right);
    outer(w->left, w->right, l->out, length / STEP, l->in, dweight);
}

/* The gradient that a branch gets, in w->narrow */
static void enter_branch(const struct model *m, struct work *w, int64_t length, uint32_t seed) {
    int64_t n = length * m->width;
    memcpy(w->branch, w->dx, n * sizeof(float));
    drop(w->branch, n, m->dropout, seed);
    narrow_all(w->branch, w->narrow, n);
}

static void layer_back(const struct model *m, struct work *w, int64_t nth, int64_t length, uint32_t seed, int64_t row,
                       float *grads) {
    struct layer *layer = &w->layers[nth];
    struct linear linears[LINEARS];
    int64_t c = m->width;
    for (int i = 0; i < LINEARS; i++) linears[i] = linear_of(m, nth * LINEARS + i);
    enter_branch(m, w, length, seed_of(seed, row, nth, FED));
    square(layer->active, w->square, length * 4 * c);
    linear_back(w, length, &linears[DOWN], w->narrow, w->square, w->wide, grads + offset(m, nth, DOWN));
    for (int64_t i = 0; i < length * 4 * c; i++) w->narrow[i] = narrow(2 * w->wide[i] * widen(layer->active[i]));
    linear_back(w, length, &linears[UP], w->narrow, layer->halves[1].mixed, w->wide, grads + offset(m, nth, UP));
    mix_back(m, w, length, m->taps ? weight_of(m, nth, 5) : NULL, &layer->halves[1], w->wide, grads + offset(m, nth, 5));

    enter_branch(m, w, length, seed_of(seed, row, nth, MIXED));
    linear_back(w, length, &linears[OUT], w->narrow, layer->heard, w->branch, grads + offset(m, nth, OUT));
    narrow_all(w->branch, w->narrow, length * c);
    for (int64_t i = 0; i < m->heads; i++) {
        struct head head = head_of(m, w, layer, length, i, seed_of(seed, row, nth, WEIGHED + i));
        float *dq = w->wide + i * head.size;
        attend_back(&head, &w->scratch, w->narrow + i * head.size, dq, dq + c, dq + 2 * c);
    }
    turn_back(m, w, length, layer, w->wide);
    narrow_all(w->wide, w->narrow, length * 3 * c);
    linear_back(w, length, &linears[QKV], w->narrow, layer->halves[0].mixed, w->wide, grads + offset(m, nth, QKV));
    mix_back(m, w, length, m->taps ? weight_of(m, nth, 4) : NULL, &layer->halves[0], w->wide, grads + offset(m, nth, 4));
}

/* Nats of one token, whose logits become their gradient. Padding comes after the vocabulary. */
static double surprise(float *logits, int64_t vocab, int64_t padding, int64_t target, float share) {
    if (target < 0) {
        memset(logits, 0, padding * sizeof(float));
        return 0;
    }
    float most = logits[0], given = logits[target];
    for (int64_t i = 1; i < vocab; i++) most = logits[i] > most ? logits[i] : most;
    for (int64_t i = 0; i < vocab; i++) logits[i] = exponential(logits[i] - most);
    float total = sum(logits, vocab), scale = share / total;
    for (int64_t i = 0; i < vocab; i++) logits[i] *= scale;
    memset(logits + vocab, 0, (padding - vocab) * sizeof(float));
    logits[target] -= share;
    return (double)logf(total) + most - given;
}

/* Summed nats of a row; w->dx is then the gradient of what the last layer gave. */
static double head_both(const struct model *m, struct work *w, int64_t length, const int64_t *targets, int64_t tokens,
                        float share, float *grads) {
    struct linear head = linear_of(m, m->layers * LINEARS);
    int64_t c = m->width;
    double nats = 0;
    for (int64_t t = 0; t < length; t++) w->last_scales[t] = norm(w->x + t * c, c, w->last_normed + t * c);
    narrow_all(w->last_normed, w->last, length * c);
    product(w->last, head.there, length, c / STEP, head.out, w->wide, 0);
    for (int64_t t = 0; t < length; t++)
        nats += surprise(w->wide + t * head.out, m->vocab, head.out, t < tokens ? targets[t] : -1, share);
    if (!grads) return nats;
    narrow_all(w->wide, w->narrow, length * head.out);
    linear_back(w, length, &head, w->narrow, w->last, w->branch, grads + m->vocab * c);
    memset(w->dx, 0, length * c * sizeof(float));
    for (int64_t t = 0; t < length; t++)
        norm_back(w->branch + t * c, w->last_normed + t * c, w->last_scales[t], c, w->dx + t * c);
    return nats;
}

static void embed(const struct model *m, struct work *w, int64_t length, const struct batch *b, int64_t row) {
    int64_t c = m->width;
    for (int64_t t = 0; t < length; t++) {
        int64_t given = t < b->length;
        w->starts[t] = given ? b->starts[row * b->length + t] : t;
        float *x = w->first_normed + t * c;
        w->first_scales[t] = 0;
        if (given) w->first_scales[t] = norm(m->weights[0] + b->inputs[row * b->length + t] * c, c, x);
        else memset(x, 0, c * sizeof(float));
    }
    find_ends(w->starts, length, w->scratch.ends);
    memcpy(w->x, w->first_normed, length * c * sizeof(float));
    drop(w->x, length * c, m->dropout, seed_of(b->seed, row, m->layers, EMBEDDED));
}

static void embed_back(const struct model *m, struct work *w, int64_t length, const struct batch *b, int64_t row,
                       float *grads) {
    int64_t c = m->width;
    drop(w->dx, length * c, m->dropout, seed_of(b->seed, row, m->layers, EMBEDDED));
    for (int64_t t = 0; t < b->length; t++)
        norm_back(w->dx + t * c, w->first_normed + t * c, w->first_scales[t], c,
                  grads + b->inputs[row * b->length + t] * c);
}

/* Summed nats of some rows, and, unless it is NULL, the gradients of these times `share`, in the order of
   `weights`. */
double run(const struct model *m, const struct batch *b, float share, char *memory, float *grads) {
    int64_t length = padded(b->length, PANEL);
    struct work w;
    double nats = 0;
    memory += -(uintptr_t)memory % 64;
    memory = arrange(m, length, memory, &w);
    for (int64_t i = 0; i < m->layers; i++) memory = arrange_layer(m, length, memory, &w.layers[i]);
    if (grads) memset(grads, 0, gradients_size(m) * sizeof(float));
    for (int64_t row = b->first; row < b->last; row++) {
        embed(m, &w, length, b, row);
        for (int64_t i = 0; i < m->layers; i++) layer_there(m, &w, i, length, b->seed, row);
        nats += head_both(m, &w, length, b->targets + row * b->length, b->length, share, grads);
        if (!grads) continue;
        for (int64_t i = m->layers; i-- > 0;) layer_back(m, &w, i, length, b->seed, row, grads);
        embed_back(m, &w, length, b, row, grads);
    }
    return nats;
}
