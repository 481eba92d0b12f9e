/* Context mixing: training, scores, distributions and samples. See model.py; plain.py is the same in Python. */

#include "simd.h"
#include "position.h"
#include "table.h"
#include "mixing.h"

static const int match_lengths[N_MATCHES] = {5, 12};

/* Where the history went on after the last tokens, when they were last seen. */
INLINE int32_t *match_slot(const struct model *m, const struct position *p, int k) {
    uint64_t hash = k;
    for (int i = 0; i < match_lengths[k]; i++) hash = combine(hash, p->recent[i]);
    return m->match_table + k * m->match_slots + (int64_t)(hash % (uint64_t)m->match_slots);
}

INLINE int match_level(int64_t length) {
    if (length < 16) return (int)length;
    if (length < 32) return (int)(length < 24 ? 16 + (length - 16) / 2 : 20 + (length - 24) / 4);
    return 22 + (length > 63) + (length > 127) + (length > 400);
}

/* Follow each match by the token just pushed, or look for a new one. */
static void follow_matches(const struct model *m, struct position *p) {
    int64_t n = *m->n_history, mask = m->history_size - 1;
    for (int k = 0; k < N_MATCHES; k++) {
        int64_t at = p->match[k];
        if (p->match_length[k] && n - at <= m->history_size && at < n && m->history[at & mask] == p->recent[0]) {
            p->match[k]++, p->match_length[k]++;
            continue;
        }
        p->match_length[k] = 0;
    }
    for (int k = 0; k < N_MATCHES; k++) {
        if (p->match_length[k] || p->recent[match_lengths[k] - 1] == m->boundary) continue;
        int64_t at = *match_slot(m, p, k);
        int64_t length = 0;
        if (at <= 0 || n - at > m->history_size - RECENT) continue;
        while (length < RECENT && length < at && p->recent[length] != m->boundary &&
               m->history[(at - 1 - length) & mask] == p->recent[length])
            length++;
        if (length >= match_lengths[k]) p->match[k] = at, p->match_length[k] = length;
    }
}

/* Append a token to the history; p: the position after it. */
static void remember(const struct model *m, const struct position *p, int64_t token) {
    m->history[*m->n_history & (m->history_size - 1)] = (int32_t)token;
    ++*m->n_history;
    for (int k = 0; k < N_MATCHES; k++)
        if (p->recent[match_lengths[k] - 1] != m->boundary)
            *match_slot(m, p, k) = (int32_t)*m->n_history;
}

static void select_weights(struct walk *w) {
    const struct position *p = w->p;
    int64_t order = 0, confidence = 0, words = 0, folded = 0, match = 0;
    for (int c = O1; c <= O12 && w->evidence[c].size; c++) order = c + 1;
    if (order && w->evidence[order - 1].size == 1)
        confidence = (int64_t)at_most(bits(w->evidence[order - 1].counts[0], 0, 24), 3);
    for (int c = W1; c <= W3 && w->evidence[c].size; c++) words = c - W1 + 1;
    for (int c = F3; c <= F7 && w->evidence[c].size; c++) folded = c - F3 + 1;
    for (int k = 0; k < N_MATCHES; k++)
        if (w->expected[k] >= 0) {
            static const int levels[] = {8, 12, 16, 24, 32, 100};
            int64_t level = 1;
            for (int i = 0; i < 6; i++) level += p->match_length[k] >= levels[i];
            match = level > match ? level : match;
        }
    int64_t t1 = p->recent[0], length = p->word_length > 7 ? 7 : p->word_length;
    w->order = order;
    w->selectors[0] = match;
    w->selectors[1] = order;
    w->selectors[2] = t1;
    w->selectors[3] = (order * 4 + confidence) * 8 + (int64_t)at_most((uint64_t)w->evidence[W1].size, 7);
    w->selectors[4] = t1 * w->m->vocab_size + p->recent[1];
    w->selectors[5] = length * 2 + p->is_capital;
    w->selectors[6] = folded * 4 + words;
    w->selectors[7] = p->kinds & 511;
    w->selectors[8] = order ? w->evidence[order - 1].ranks[0] + 1 : 0;
    w->selectors[9] = words ? w->evidence[W1 + words - 1].ranks[0] + 1 : 0;
    w->apm_hashes[0] = combine(1, t1);
    w->apm_hashes[1] = combine(combine(2, t1), p->recent[1]);
    w->apm_hashes[2] = combine(3, w->hashes[W1]);
}

static void find_contexts(const struct model *m, const struct position *p, struct walk *w) {
    context_hashes(p, w->hashes);
    for (int c = 0; c < N_CONTEXTS; c++) {
        w->hashes[c] = combine(w->hashes[c], c);
        w->hashes[c] = combine(w->hashes[c] ^ w->hashes[c] >> 29, 0);
        __builtin_prefetch(bucket_of(&m->table, w->hashes[c]));
    }
    for (int c = 0; c < N_CONTEXTS; c++) w->slots[c] = find_slot(&m->table, w->hashes[c]);
}

/* Look up every context of a position, once. */
static void look_up(const struct model *m, const struct position *p, struct walk *w) {
    w->m = m, w->p = p;
    find_contexts(m, p, w);
    for (int c = 0; c < N_CONTEXTS; c++)
        if (w->slots[c] && bits(*w->slots[c], 16, 1)) __builtin_prefetch(m->table.lists + (*w->slots[c] >> 32));
    for (int c = 0; c < N_CONTEXTS; c++) load_evidence(&m->table, w->slots[c], &w->evidence[c]);
    for (int k = 0; k < N_MATCHES; k++) {
        int64_t length = p->match_length[k];
        int in_history = length && p->match[k] < *m->n_history && *m->n_history - p->match[k] <= m->history_size;
        w->expected[k] = in_history ? m->rank_of[m->history[p->match[k] & (m->history_size - 1)]] : -1;
        w->match_level[k] = match_level(length);
    }
    select_weights(w);
}

static struct subtree whole_tree(const struct walk *w) {
    struct subtree t = {.node = w->m->root};
    for (int c = 0; c < N_CONTEXTS; c++) t.end[c] = w->evidence[c].size;
    return t;
}

/* Compute the inputs of the decision at d->at; lo, hi: the ranks below it. */
static void decide(struct walk *w, struct decision *d, int64_t lo, int64_t hi) {
    d->depth3 = d->at.depth == 0 ? 0 : d->at.depth < 3 ? 1 : 2;
    d->depth4 = d->at.depth < 3 ? d->at.depth : 3;
    d->n_cells = d->n_matches = 0, d->lo = lo, d->hi = hi;
    context_inputs(w, d);
    other_inputs(w, d);
}

/* Whether only one child of the node is possible: boundaries don't follow each other, nor occur in running text. */
INLINE int is_forced(const struct walk *w, int64_t node) {
    return node == w->m->boundary_node && (w->p->recent[0] == w->m->boundary || !w->m->has_boundary);
}

INLINE void descend(const struct model *m, struct subtree *t, int bit, int64_t *lo, int64_t *hi) {
    memcpy(bit ? t->begin : t->end, t->middle, sizeof t->middle);
    *(bit ? lo : hi) = t->node;
    t->node = (bit ? m->right : m->left)[t->node];
    t->depth++;
}

/* Nats of a token ; the weights learn if asked to. */
static double code(const struct model *m, struct walk *w, int64_t rank, int learns) {
    struct decision d = {0}; /* also the padding of its inputs */
    int64_t lo = 0, hi = m->vocab_size;
    double nats = 0;
    d.at = whole_tree(w);
    while (hi - lo > 1) {
        int bit = rank >= d.at.node;
        decide(w, &d, lo, hi);
        if (!is_forced(w, d.at.node)) {
            float p = mix(w, &d);
            nats -= log(bit ? p : 1 - p);
            if (learns) learn_mixer(m, &d, bit, w->order), learn_cells(&d, bit);
        }
        descend(m, &d.at, bit, &lo, &hi);
    }
    return nats;
}

/* Count a token in every context, the longer of a chain first. */
static void count_token(struct model *m, struct walk *w, uint64_t rank) {
    int is_new[N_CONTEXTS];
    for (int c = N_CONTEXTS - 1; c >= 0; c--) {
        /* Counting another context may have replaced this one. */
        uint64_t *slot = w->slots[c] && (*w->slots[c] & 0xffff) == check_of(w->hashes[c]) ? w->slots[c] : 0;
        is_new[c] = count(&m->table, w->hashes[c], slot, rank, longer[c] && is_new[longer[c]]);
    }
}

/* Fill in the logits of the tokens below a subtree; d is working memory. */
static void distribute(struct walk *w, struct decision *d, const struct subtree *t, int64_t lo, int64_t hi, float log_p,
                       float *logits) {
    if (hi - lo == 1) {
        logits[w->m->token_of[lo]] = log_p;
        return;
    }
    float log_left = 0, log_right = 0;
    d->at = *t;
    decide(w, d, lo, hi);
    if (is_forced(w, t->node))
        *(w->m->boundary_side ? &log_right : &log_left) = -INFINITY;
    else {
        float p = mix(w, d);
        log_right = logf(p), log_left = log1pf(-p);
    }
    struct subtree children[2] = {d->at, d->at};
    for (int bit = 0; bit < 2; bit++) {
        int64_t child_lo = lo, child_hi = hi;
        descend(w->m, &children[bit], bit, &child_lo, &child_hi);
        distribute(w, d, &children[bit], child_lo, child_hi, log_p + (bit ? log_right : log_left), logits);
    }
}

/* Read tokens in order from p on: nats (n,) of targets given inputs, the counts and the weights learning if asked to.
   Targets below 0 are skipped. Unless logits is null, it gets log-probabilities (n, V) before learning. */
void read_tokens(struct model *m, struct position *p, const int64_t *inputs, const int64_t *targets, double *nats,
                 int64_t n, int64_t learns, int64_t counts, float *logits) {
    struct walk w;
    struct decision d = {0}; /* also the padding of its inputs */
    for (int64_t i = 0; i < n; i++) {
        push(p, inputs[i], m->boundary, m->kinds, m->folded);
        follow_matches(m, p);
        if (counts) remember(m, p, inputs[i]);
        int is_possible = targets[i] != m->boundary || (inputs[i] != m->boundary && m->has_boundary);
        nats[i] = targets[i] < 0 || is_possible ? 0 : INFINITY;
        if (targets[i] < 0 || !is_possible) continue;
        look_up(m, p, &w);
        if (logits) {
            struct subtree tree = whole_tree(&w);
            distribute(&w, &d, &tree, 0, m->vocab_size, 0, logits + i * m->vocab_size);
            /* That has sorted the evidence, whose first entry must be the last token seen. */
            for (int c = 0; c < N_CONTEXTS; c++) load_evidence(&m->table, w.slots[c], &w.evidence[c]);
        }
        nats[i] = code(m, &w, m->rank_of[targets[i]], (int)learns);
        if (counts) count_token(m, &w, (uint64_t)m->rank_of[targets[i]]);
    }
}

/* Push T tokens to each row; unless it is null, logits (rows, T, V) of the tokens after each. */
void distributions(const struct model *m, int64_t rows, int64_t T, const int64_t *tokens, struct position *positions,
                   float *logits) {
    struct walk w;
    struct decision d = {0}; /* also the padding of its inputs */
    for (int64_t row = 0; row < rows; row++)
        for (int64_t t = 0; t < T; t++) {
            struct position *p = positions + row;
            push(p, tokens[row * T + t], m->boundary, m->kinds, m->folded);
            follow_matches(m, p);
            if (!logits) continue;
            look_up(m, p, &w);
            struct subtree tree = whole_tree(&w);
            distribute(&w, &d, &tree, 0, m->vocab_size, 0, logits + (row * T + t) * m->vocab_size);
        }
}

/* Sample a token per row by uniform (rows,) in [0, 1) into ids (rows,), and push it. */
void sample(const struct model *m, int64_t rows, struct position *positions, const double *uniform, int64_t *ids) {
    struct walk w;
    struct decision d = {0}; /* also the padding of its inputs */
    for (int64_t row = 0; row < rows; row++) {
        struct position *p = positions + row;
        int64_t lo = 0, hi = m->vocab_size;
        double u = uniform[row];
        look_up(m, p, &w);
        d.at = whole_tree(&w);
        while (hi - lo > 1) {
            decide(&w, &d, lo, hi);
            double left = is_forced(&w, d.at.node) ? m->boundary_side : 1 - (double)mix(&w, &d);
            int bit = u >= left;
            u = bit ? (u - left) / (1 - left) : u / left;
            descend(m, &d.at, bit, &lo, &hi);
        }
        ids[row] = m->token_of[lo];
        push(p, ids[row], m->boundary, m->kinds, m->folded);
        follow_matches(m, p);
    }
}
