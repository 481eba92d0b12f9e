/* The model, the batch, and the memory that one row of the batch needs. */

enum document_ends { ANYWHERE, NONEMPTY, NEVER };

struct model {
    int64_t layers, heads, width, vocab, taps; /* taps: width of the short convolutions, 0 without them */
    int64_t gated;                             /* whether the heads' outputs are gated */
    int64_t boundary, document_ends;           /* where the boundary can come next: enum document_ends */
    float dropout, impossible, score_scale;    /* impossible: the logit of a boundary that can't come */
    const float *cos, *sin;      /* (T, D / 2), T a multiple of PANEL */
    const float *const *weights; /* embedding (V, C), head (V, C), then of each layer qkv, out, up, down, its
                                    convolutions and the gate (H, C) */
    pair *packed;                /* written by pack_weights */
};

struct batch {
    int64_t length, first, last;              /* compute rows first to last - 1 */
    const int64_t *inputs, *targets, *starts; /* (B, T); negative targets don't count; starts: of documents */
    uint32_t seed;                            /* of dropout */
};

const int64_t panel = PANEL, sizeof_model = sizeof(struct model), sizeof_batch = sizeof(struct batch);

enum { QKV, OUT, UP, DOWN, LINEARS, CONVS = LINEARS, GATE = CONVS + 2 }; /* a layer's weights */
enum { DROP_EMBEDDING, DROP_ATTENTION, DROP_FEED_FORWARD, DROP_PROBS }; /* dropout sites */

/* A linear layer's weight (out, in), packed for y = x @ weight.T and for dx = dy @ weight. */
struct linear {
    int64_t out, in;
    pair *packed, *packed_t;
};

/* Activations of the attention or the feed-forward half of a layer, kept for the backward pass. */
struct sublayer {
    float *normed, *scales; /* (L, C), (L,): output and scale of the norm */
    elem *conv_out;         /* (L, C) */
};

/* Activations of a layer, kept for the backward pass. */
struct layer {
    struct sublayer sublayers[2];
    elem *qkv;      /* (L, 3 C): queries and keys normalised and rotated, queries times score_scale / sqrt(D) */
    float *scales;  /* (L, 2 H): of the norms of queries and keys */
    float *gates;   /* (L, H): from 0 to 1 */
    elem *attn_out; /* (L, C) */
    elem *relu_out; /* (L, 4 C) */
};

struct work {
    struct layer *layers;
    struct attn_work attn;
    int64_t *starts;                    /* (L,) */
    float *x, *dx, *branch;             /* (L, C): the residual stream, its gradient, one branch */
    float *wide;                        /* (L, max(4 C, V)) */
    elem *branch_elems;                 /* (L, C) */
    elem *wide_elems, *relu_sq;         /* (L, max(4 C, V)), (L, 4 C) */
    float *final_normed, *final_scales; /* (L, C), (L,) */
    float *embed_normed, *embed_scales; /* (L, C), (L,) */
    float *dgates;                      /* (L, H): gradient of the gates' logits */
    elem *final;                        /* (L, C): input of the head */
    elem *transposed;                   /* (max(4 C, V), L) */
    pair *packed;                       /* (L, 4 C) */
};

/* The nth linear layer; the head is the last one. */
static struct linear get_linear(const struct model *m, int64_t nth) {
    int64_t c = m->width, v = round_up(m->vocab, PANEL);
    int64_t out[] = {3 * c, c, 4 * c, c}, in[] = {c, c, c, 4 * c}, before[] = {0, 3, 4, 8};
    int64_t layer = nth / LINEARS, kind = nth % LINEARS, head = layer == m->layers;
    int64_t size = head ? v * c / STEP : out[kind] * in[kind] / STEP;
    pair *at = m->packed + 2 * (12 * layer + before[kind]) * c * c / STEP;
    return (struct linear){head ? v : out[kind], head ? c : in[kind], at, at + size};
}

/* Offset in floats of a weight's gradient among all gradients, in the order of `weights`. */
static int64_t offset(const struct model *m, int64_t layer, int64_t kind) {
    int64_t c = m->width, before[] = {0, 3 * c, 4 * c, 8 * c, 12 * c, 12 * c + m->taps, 12 * c + 2 * m->taps};
    int64_t size = before[GATE] + (m->gated ? m->heads : 0);
    return (m->vocab + round_up(m->vocab, PANEL)) * c + layer * size * c + before[kind] * c;
}

static const float *get_weight(const struct model *m, int64_t layer, int64_t kind) {
    int64_t convs = m->taps ? 2 : 0, per_layer = LINEARS + convs + (m->gated ? 1 : 0);
    return m->weights[2 + layer * per_layer + (kind == GATE ? LINEARS + convs : kind)];
}

int64_t n_gradients(const struct model *m) { return offset(m, m->layers, 0); } /* floats */

int64_t packed_size(const struct model *m) { /* bytes */
    int64_t c = m->width;
    return 2 * (12 * m->layers * c + round_up(m->vocab, PANEL)) * c * (int64_t)sizeof(elem);
}

/* Pack the linear layers; `work` has room for the largest. */
void pack_weights(const struct model *m, elem *work) {
    for (int64_t nth = 0; nth <= m->layers * LINEARS; nth++) {
        struct linear l = get_linear(m, nth);
        int64_t head = nth == m->layers * LINEARS, rows = head ? m->vocab : l.out;
        const float *weight = head ? m->weights[1] : get_weight(m, nth / LINEARS, nth % LINEARS);
        to_elems(weight, work, rows * l.in);
        memset(work + rows * l.in, 0, (l.out - rows) * l.in * sizeof(elem));
        pack_rows(work, l.in, l.out, l.in, l.packed);
        pack_columns(work, l.in, l.out, l.in, l.packed_t);
    }
}

/* Allocate 64-byte aligned memory from a buffer. */
static void *alloc(char **at, int64_t bytes) {
    void *here = *at;
    *at += round_up(bytes, 64);
    return here;
}

/* Partition the work buffer into the scratch areas of one row; returns the end. */
static char *layout_work(const struct model *m, int64_t length, char *at, struct work *w) {
    int64_t l = length, c = m->width, size = round_up(c / m->heads, PANEL), f = sizeof(float), n = sizeof(elem);
    int64_t widest = 4 * c > round_up(m->vocab, PANEL) ? 4 * c : round_up(m->vocab, PANEL);
    w->layers = alloc(&at, m->layers * sizeof(struct layer));
    w->starts = alloc(&at, l * sizeof(int64_t));
    w->x = alloc(&at, l * c * f), w->dx = alloc(&at, l * c * f), w->branch = alloc(&at, l * c * f);
    w->wide = alloc(&at, l * widest * f);
    w->branch_elems = alloc(&at, l * c * n), w->wide_elems = alloc(&at, l * widest * n);
    w->relu_sq = alloc(&at, l * 4 * c * n);
    w->embed_normed = alloc(&at, l * c * f), w->embed_scales = alloc(&at, l * f);
    w->final_normed = alloc(&at, l * c * f), w->final_scales = alloc(&at, l * f), w->final = alloc(&at, l * c * n);
    w->dgates = alloc(&at, l * m->heads * f);
    w->transposed = alloc(&at, l * widest * n), w->packed = alloc(&at, l * 4 * c * n);
    struct attn_work *s = &w->attn;
    s->probs = alloc(&at, l * l * f), s->dprobs = alloc(&at, l * l * f);
    s->dropped = alloc(&at, l * l * n), s->dscores = alloc(&at, l * l * n), s->transposed = alloc(&at, l * l * n);
    s->packed_a = alloc(&at, l * size * n), s->packed_b = alloc(&at, l * size * n), s->out = alloc(&at, l * size * f);
    s->key_end = alloc(&at, l / BLOCK * sizeof(int64_t));
    return at;
}

static char *layout_layer(const struct model *m, int64_t l, char *at, struct layer *layer) {
    int64_t c = m->width, f = sizeof(float), n = sizeof(elem);
    for (int i = 0; i < 2; i++) {
        struct sublayer *half = &layer->sublayers[i];
        half->normed = alloc(&at, l * c * f), half->scales = alloc(&at, l * f);
        half->conv_out = alloc(&at, l * c * n);
    }
    layer->qkv = alloc(&at, l * 3 * c * n), layer->scales = alloc(&at, l * 2 * m->heads * f);
    layer->gates = alloc(&at, l * m->heads * f);
    layer->attn_out = alloc(&at, l * c * n), layer->relu_out = alloc(&at, l * 4 * c * n);
    return at;
}

int64_t workspace(const struct model *m, int64_t length) { /* bytes */
    struct work w;
    struct layer layer;
    int64_t l = round_up(length, PANEL);
    int64_t per_layer = layout_layer(m, l, NULL, &layer) - (char *)NULL;
    return layout_work(m, l, NULL, &w) - (char *)NULL + m->layers * per_layer + 64;
}
