/* Loss and gradients of the modern transformer. Each row of the batch goes forward and backward through all layers
   before the next, so that its activations stay in the processor's caches. The rows are divided into parts, each
   with its own gradients.

   Shapes: L is the row's length and V the vocabulary, both rounded up to PANEL; C is the width. Positions past the last
   token are zero, and each is a separate document. */

#include "matmul.h"

#include "layers.h"

#include "attention.h"

#include "workspace.h"

/* How many tokens of its document the convolutions see at position t. */
INLINE int64_t visible_taps(const struct model *m, const struct work *w, int64_t t) {
    int64_t visible = t - w->starts[t] + 1;
    return visible < m->taps ? visible : m->taps;
}

/* The norm, then the short convolution: each channel plus a weighted sum of its last `taps` values. */
static void norm_conv(const struct model *m, const struct work *w, int64_t length, const float *weight,
                      struct sublayer *half) {
    int64_t c = m->width;
    for (int64_t t = 0; t < length; t++) {
        const float *y = half->normed + t * c;
        int64_t taps = visible_taps(m, w, t);
        half->scales[t] = rms_norm(w->x + t * c, c, half->normed + t * c);
        for (int64_t i = 0; i < c; i += LANES) {
            vec sum = *(const vec *)(y + i);
            for (int64_t k = 0; k < taps; k++) sum += *(const vec *)(y - k * c + i) * *(const vec *)(weight + k * c + i);
            store_elems(half->conv_out + t * c + i, sum);
        }
    }
}

/* w->branch, dweight += the gradients of the convolution's input and weight for LANES channels from i on. */
INLINE void conv_backward(const struct model *m, const struct work *w, int64_t length, const float *weight,
                          const float *normed, const float *dy, float *dweight, int64_t i) {
    int64_t c = m->width;
    for (int64_t t = 0; t < length; t++) {
        vec grad = *(const vec *)(dy + t * c + i);
        int64_t taps = visible_taps(m, w, t);
        *(vec *)(w->branch + t * c + i) = grad;
        for (int64_t k = 0; k < taps; k++) {
            int64_t at = (t - k) * c + i;
            *(vec *)(dweight + k * c + i) += grad * *(const vec *)(normed + at);
            *(vec *)(w->branch + at) += grad * *(const vec *)(weight + k * c + i);
        }
    }
}

/* w->dx += the input's gradient, from dy (L, C) */
static void norm_conv_backward(const struct model *m, const struct work *w, int64_t length, const float *weight,
                               const struct sublayer *half, const float *dy, float *dweight) {
    int64_t c = m->width;
    for (int64_t i = 0; m->taps && i < c; i += LANES)
        conv_backward(m, w, length, weight, half->normed, dy, dweight, i);
    for (int64_t t = 0; t < length; t++)
        rms_norm_backward((m->taps ? w->branch : dy) + t * c, half->normed + t * c, half->scales[t], c, w->dx + t * c);
}

/* Normalise and rotate the queries and keys of PANEL positions from `first` on; overwrites their qkv. */
static void qk_rope_forward(const struct model *m, int64_t first, float *qkv, struct layer *layer) {
    int64_t c = m->width, size = c / m->heads, half = size / 2;
    for (int64_t i = 0; i < PANEL; i++)
        for (int64_t h = 0; h < 2 * m->heads; h++) {
            int64_t t = first + i;
            float divisor = h < m->heads ? sqrtf(size) / m->score_scale : 1;
            layer->scales[t * 2 * m->heads + h] =
                qk_norm_rope(qkv + i * 3 * c + h * size, m->cos + t * half, m->sin + t * half, divisor, size);
        }
    to_elems(qkv, layer->qkv + first * 3 * c, PANEL * 3 * c);
}

/* In dqkv, replace the gradient of the normalised, rotated queries and keys by the gradient of the linear layer's
   output. */
static void qk_rope_backward(const struct model *m, const struct work *w, int64_t length, const struct layer *layer,
                             float *dqkv) {
    int64_t c = m->width, size = c / m->heads, half = size / 2;
    for (int64_t t = 0; t < length; t++) {
        to_f32s(layer->qkv + t * 3 * c, w->branch, 2 * c);
        for (int64_t i = 0; i < 2 * m->heads; i++) {
            float *x = dqkv + t * 3 * c + i * size, *y = w->branch + i * size;
            float divisor = i < m->heads ? sqrtf(size) / m->score_scale : 1;
            float mean = dot_head(x, y, size) * divisor * divisor / size;
            for (int64_t j = 0; j < size; j += 4) *(vec4 *)(x + j) -= *(vec4 *)(y + j) * mean;
            float scale = layer->scales[t * 2 * m->heads + i] / divisor;
            rope(x, m->cos + t * half, m->sin + t * half, -1, scale, half, x);
        }
    }
}

/* Gates of the heads, from the layer's input (L, C). */
static void gates_forward(const struct model *m, const struct work *w, int64_t length, const float *weight,
                          const elem *input, float *gates) {
    int64_t c = m->width;
    for (int64_t t = 0; t < length; t++) {
        to_f32s(input + t * c, w->branch, c);
        for (int64_t h = 0; h < m->heads; h++)
            gates[t * m->heads + h] = 1 / (1 + fast_exp(-dot(w->branch, weight + h * c, c)));
    }
}

/* In w->branch, replace the gradient of the gated outputs by the gradient of the outputs; w->dgates = the gradient of
   the gates' logits. */
static void gates_backward(const struct model *m, const struct work *w, int64_t length, const struct layer *layer) {
    int64_t size = m->width / m->heads;
    for (int64_t i = 0; i < length * m->heads; i++) {
        float *dy = w->branch + i * size, gate = layer->gates[i], sum = 0;
        const elem *out = layer->attn_out + i * size;
        for (int64_t j = 0; j < size; j++) sum += dy[j] * to_f32(out[j]), dy[j] *= 2 * gate;
        w->dgates[i] = (1 - gate) * sum;
    }
}

/* dinput (L, C) += the input's gradient, from w->dgates. */
static void gates_weight_backward(const struct model *m, const struct work *w, int64_t length, const float *weight,
                                  const elem *input, float *dinput, float *dweight) {
    int64_t c = m->width;
    for (int64_t t = 0; t < length; t++) {
        to_f32s(input + t * c, w->branch, c);
        for (int64_t h = 0; h < m->heads; h++) {
            float dgate = w->dgates[t * m->heads + h], *restrict to = dinput + t * c, *restrict dw = dweight + h * c;
            const float *restrict by = weight + h * c, *restrict x = w->branch;
            for (int64_t i = 0; i < c; i++) to[i] += dgate * by[i], dw[i] += dgate * x[i];
        }
    }
}

/* w->x += dropout(h @ weight.T), the end of a branch. */
static void add_branch(const struct model *m, struct work *w, int64_t length, const elem *h, const struct linear *l,
                        uint32_t seed) {
    int64_t n = length * m->width;
    if (m->dropout == 0) {
        matmul(h, l->packed, length, l->in / STEP, l->out, w->x, 1);
        return;
    }
    matmul(h, l->packed, length, l->in / STEP, l->out, w->branch, 0);
    dropout(w->branch, n, m->dropout, seed);
    for (int64_t i = 0; i < n; i++) w->x[i] += w->branch[i];
}

static struct attn_head get_head(const struct model *m, const struct work *w, const struct layer *layer, int64_t length,
                           int64_t nth, uint32_t seed) {
    int64_t c = m->width, size = c / m->heads;
    const elem *q = layer->qkv + nth * size;
    const float *gates = m->gated ? layer->gates + nth : NULL;
    return (struct attn_head){length, size, c, m->heads, w->starts, gates, q, q + c, q + 2 * c, seed, m->dropout};
}

static void layer_forward(const struct model *m, struct work *w, int64_t nth, int64_t length, uint32_t seed,
                          int64_t row) {
    struct layer *layer = &w->layers[nth];
    struct linear linears[LINEARS];
    int64_t c = m->width;
    for (int i = 0; i < LINEARS; i++) linears[i] = get_linear(m, nth * LINEARS + i);
    const struct linear *qkv = &linears[QKV], *up = &linears[UP];
    norm_conv(m, w, length, m->taps ? get_weight(m, nth, CONVS) : NULL, &layer->sublayers[0]);
    for (int64_t t = 0; t < length; t += PANEL) {
        matmul(layer->sublayers[0].conv_out + t * c, qkv->packed, PANEL, c / STEP, 3 * c, w->wide, 0);
        qk_rope_forward(m, t, w->wide, layer);
    }
    if (m->gated)
        gates_forward(m, w, length, get_weight(m, nth, GATE), layer->sublayers[0].conv_out, layer->gates);
    for (int64_t i = 0; i < m->heads; i++) {
        struct attn_head head = get_head(m, w, layer, length, i, dropout_seed(seed, row, nth, DROP_PROBS + i));
        attention_forward(&head, &w->attn, layer->attn_out + i * head.size);
    }
    add_branch(m, w, length, layer->attn_out, &linears[OUT], dropout_seed(seed, row, nth, DROP_ATTENTION));
    norm_conv(m, w, length, m->taps ? get_weight(m, nth, CONVS + 1) : NULL, &layer->sublayers[1]);
    for (int64_t t = 0; t < length; t += PANEL) {
        matmul(layer->sublayers[1].conv_out + t * c, up->packed, PANEL, c / STEP, 4 * c, w->wide, 0);
        relu_squared_elems(w->wide, layer->relu_out + t * 4 * c, w->relu_sq + t * 4 * c, PANEL * 4 * c);
    }
    add_branch(m, w, length, w->relu_sq, &linears[DOWN], dropout_seed(seed, row, nth, DROP_FEED_FORWARD));
}

/* dweight += dy.T @ x, from dy (L, out) and x (L, in) */
static void weight_backward(const struct work *w, int64_t length, const struct linear *l, const elem *dy, const elem *x,
                            float *dweight) {
    transpose(dy, l->out, length, l->out, w->transposed, length);
    pack_columns(x, l->in, length, l->in, w->packed);
    matmul(w->transposed, w->packed, l->out, length / STEP, l->in, dweight, 1);
}

/* dx (L, in) = dy @ weight; dweight += dy.T @ x */
static void linear_backward(const struct work *w, int64_t length, const struct linear *l, const elem *dy, const elem *x,
                        float *dx, float *dweight) {
    weight_backward(w, length, l, dy, x, dweight);
    matmul(dy, l->packed_t, length, l->out / STEP, l->in, dx, 0);
}

/* w->branch_elems = the gradient of a branch's output. */
static void branch_grad(const struct model *m, struct work *w, int64_t length, uint32_t seed) {
    int64_t n = length * m->width;
    if (m->dropout == 0) {
        to_elems(w->dx, w->branch_elems, n);
        return;
    }
    memcpy(w->branch, w->dx, n * sizeof(float));
    dropout(w->branch, n, m->dropout, seed);
    to_elems(w->branch, w->branch_elems, n);
}

/* w->wide_elems = the gradient of the outputs of the feed-forward half's first layer, from w->branch_elems. */
static void relu_squared_backward(const struct model *m, struct work *w, int64_t length, const struct linear *down,
                                  const elem *relu) {
    int64_t c = m->width;
    for (int64_t t = 0; t < length; t += PANEL) {
        matmul(w->branch_elems + t * c, down->packed_t, PANEL, c / STEP, 4 * c, w->wide, 0);
        for (int64_t i = 0, at = t * 4 * c; i < PANEL * 4 * c; i += LANES, at += LANES)
            store_elems(w->wide_elems + at, 2 * *(const vec *)(w->wide + i) * load_elems(relu + at));
    }
}

static void layer_backward(const struct model *m, struct work *w, int64_t nth, int64_t length, uint32_t seed,
                           int64_t row, float *grads) {
    struct layer *layer = &w->layers[nth];
    struct linear linears[LINEARS];
    int64_t c = m->width;
    for (int i = 0; i < LINEARS; i++) linears[i] = get_linear(m, nth * LINEARS + i);
    branch_grad(m, w, length, dropout_seed(seed, row, nth, DROP_FEED_FORWARD));
    square(layer->relu_out, w->relu_sq, length * 4 * c);
    weight_backward(w, length, &linears[DOWN], w->branch_elems, w->relu_sq, grads + offset(m, nth, DOWN));
    relu_squared_backward(m, w, length, &linears[DOWN], layer->relu_out);
    linear_backward(w, length, &linears[UP], w->wide_elems, layer->sublayers[1].conv_out, w->wide,
                    grads + offset(m, nth, UP));
    norm_conv_backward(m, w, length, m->taps ? get_weight(m, nth, CONVS + 1) : NULL, &layer->sublayers[1], w->wide,
                       grads + offset(m, nth, CONVS + 1));

    branch_grad(m, w, length, dropout_seed(seed, row, nth, DROP_ATTENTION));
    linear_backward(w, length, &linears[OUT], w->branch_elems, layer->attn_out, w->branch, grads + offset(m, nth, OUT));
    if (m->gated) gates_backward(m, w, length, layer);
    to_elems(w->branch, w->branch_elems, length * c);
    for (int64_t i = 0; i < m->heads; i++) {
        struct attn_head head = get_head(m, w, layer, length, i, dropout_seed(seed, row, nth, DROP_PROBS + i));
        float *dq = w->wide + i * head.size;
        attention_backward(&head, &w->attn, w->branch_elems + i * head.size, dq, dq + c, dq + 2 * c);
    }
    qk_rope_backward(m, w, length, layer, w->wide);
    to_elems(w->wide, w->wide_elems, length * 3 * c);
    linear_backward(w, length, &linears[QKV], w->wide_elems, layer->sublayers[0].conv_out, w->wide,
                    grads + offset(m, nth, QKV));
    if (m->gated)
        gates_weight_backward(m, w, length, get_weight(m, nth, GATE), layer->sublayers[0].conv_out, w->wide,
                              grads + offset(m, nth, GATE));
    norm_conv_backward(m, w, length, m->taps ? get_weight(m, nth, CONVS) : NULL, &layer->sublayers[0], w->wide,
                       grads + offset(m, nth, CONVS));
}

/* w->wide = logits (L, V) of a row, with the boundary ruled out where it can't come next. */
static void head_forward(const struct model *m, struct work *w, int64_t length, const int64_t *inputs, int64_t tokens) {
    struct linear head = get_linear(m, m->layers * LINEARS);
    int64_t c = m->width;
    for (int64_t t = 0; t < length; t++) w->final_scales[t] = rms_norm(w->x + t * c, c, w->final_normed + t * c);
    to_elems(w->final_normed, w->final, length * c);
    matmul(w->final, head.packed, length, c / STEP, head.out, w->wide, 0);
    for (int64_t t = 0; t < tokens; t++)
        if (m->document_ends == NEVER || (m->document_ends == NONEMPTY && inputs[t] == m->boundary))
            w->wide[t * head.out + m->boundary] = m->impossible;
}

/* Summed nats of a row, from its logits; w->dx becomes the gradient of the last layer's output. */
static double head_loss(const struct model *m, struct work *w, int64_t length, const int64_t *targets, int64_t tokens,
                        float loss_scale, float *grads) {
    struct linear head = get_linear(m, m->layers * LINEARS);
    int64_t c = m->width;
    double nats = 0;
    for (int64_t t = 0; t < length; t++)
        nats += cross_entropy(w->wide + t * head.out, m->vocab, head.out, t < tokens ? targets[t] : -1, loss_scale);
    if (!grads) return nats;
    to_elems(w->wide, w->wide_elems, length * head.out);
    linear_backward(w, length, &head, w->wide_elems, w->final, w->branch, grads + m->vocab * c);
    memset(w->dx, 0, length * c * sizeof(float));
    for (int64_t t = 0; t < length; t++)
        rms_norm_backward(w->branch + t * c, w->final_normed + t * c, w->final_scales[t], c, w->dx + t * c);
    return nats;
}

static void embed_forward(const struct model *m, struct work *w, int64_t length, const struct batch *b, int64_t row) {
    int64_t c = m->width;
    for (int64_t t = 0; t < length; t++) {
        int is_token = t < b->length;
        w->starts[t] = is_token ? b->starts[row * b->length + t] : t;
        float *x = w->embed_normed + t * c;
        w->embed_scales[t] = 0;
        if (is_token) w->embed_scales[t] = rms_norm(m->weights[0] + b->inputs[row * b->length + t] * c, c, x);
        else memset(x, 0, c * sizeof(float));
    }
    find_key_ends(w->starts, length, w->attn.key_end);
    memcpy(w->x, w->embed_normed, length * c * sizeof(float));
    dropout(w->x, length * c, m->dropout, dropout_seed(b->seed, row, m->layers, DROP_EMBEDDING));
}

static void embed_backward(const struct model *m, struct work *w, int64_t length, const struct batch *b, int64_t row,
                       float *grads) {
    int64_t c = m->width;
    dropout(w->dx, length * c, m->dropout, dropout_seed(b->seed, row, m->layers, DROP_EMBEDDING));
    for (int64_t t = 0; t < b->length; t++)
        rms_norm_backward(w->dx + t * c, w->embed_normed + t * c, w->embed_scales[t], c,
                  grads + b->inputs[row * b->length + t] * c);
}

static void row_forward(const struct model *m, struct work *w, int64_t length, const struct batch *b, int64_t row) {
    embed_forward(m, w, length, b, row);
    for (int64_t i = 0; i < m->layers; i++) layer_forward(m, w, i, length, b->seed, row);
    head_forward(m, w, length, b->inputs + row * b->length, b->length);
}

static void begin(const struct model *m, int64_t length, char *memory, struct work *w) {
    memory += -(uintptr_t)memory % 64;
    memory = layout_work(m, length, memory, w);
    for (int64_t i = 0; i < m->layers; i++) memory = layout_layer(m, length, memory, &w->layers[i]);
}

/* Logits (B, T, V) of the rows from first to last - 1. */
void compute_logits(const struct model *m, const struct batch *b, char *memory, float *out) {
    int64_t length = round_up(b->length, PANEL), padded = get_linear(m, m->layers * LINEARS).out;
    struct work w;
    begin(m, length, memory, &w);
    for (int64_t row = b->first; row < b->last; row++) {
        row_forward(m, &w, length, b, row);
        for (int64_t t = 0; t < b->length; t++)
            memcpy(out + (row * b->length + t) * m->vocab, w.wide + t * padded, m->vocab * sizeof(float));
    }
    end_tiles();
}

/* Summed nats of the rows from first to last - 1. If `grads` isn't NULL, it receives the gradients of the nats times
   `loss_scale`, in the order of `weights`. */
double loss_and_grads(const struct model *m, const struct batch *b, float loss_scale, char *memory, float *grads) {
    int64_t length = round_up(b->length, PANEL);
    struct work w;
    double nats = 0;
    begin(m, length, memory, &w);
    if (grads) memset(grads, 0, n_gradients(m) * sizeof(float));
    for (int64_t row = b->first; row < b->last; row++) {
        row_forward(m, &w, length, b, row);
        nats += head_loss(m, &w, length, b->targets + row * b->length, b->length, loss_scale, grads);
        if (!grads) continue;
        for (int64_t i = m->layers; i-- > 0;) layer_backward(m, &w, i, length, b->seed, row, grads);
        embed_backward(m, &w, length, b, row, grads);
    }
    end_tiles();
    return nats;
}
