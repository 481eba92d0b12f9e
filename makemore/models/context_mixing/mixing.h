/* One binary decision: evidence -> inputs -> mixers -> final probability, and how each part learns. */

#define N_ORDERS (O12 + 1)
#define N_MATCHES 2
#define N_INPUTS ((3 * N_CONTEXTS + N_ORDERS + 1 + N_MATCHES + 1 + 15) / 16 * 16)
#define N_SETS 10
#define N_APMS 3
#define BINS 24
#define APM_ROWS 4096
#define LEVELS 20             /* of a count */
#define RECENT_LEVELS 14
#define CELL 4                /* floats of an adaptive probability: p, number of updates, logit, unused */
#define JOINT_SHARE 0.6f      /* of the error of all sets together in each set's, besides its own */
#define LOWER_SHARE 0.7f      /* of each different continuation, in counts: the weight of the shorter context */
#define CELL_LIMIT 1023.0f     /* updates until a cell forgets */
#define COUNT_CELLS (3 * LEVELS * LEVELS)
#define RECENT_CELLS (3 * RECENT_LEVELS * RECENT_LEVELS * 2)
#define MATCH_CELLS (32 * 4)
#define N_CELLS (N_CONTEXTS * COUNT_CELLS + N_CONTEXTS * RECENT_CELLS + N_MATCHES * MATCH_CELLS)

struct mixer {
    float *weights[N_SETS]; /* (rows, inputs) */
    float *by_node, *by_order; /* (V or 64, N_SETS): weights of the sets */
    float *apms;            /* (N_APMS, APM_ROWS, BINS) */
    float lr, apm_lr;
};

struct model {
    int64_t vocab_size, boundary, root, boundary_node, boundary_side, has_boundary;
    const uint8_t *kinds;
    const int32_t *folded, *rank_of, *token_of, *left, *right;
    struct table table;
    int64_t *n_history, history_size, match_slots;
    int32_t *history, *match_table;
    const float *logs;
    const uint8_t *levels;
    float *cells, *node_cells;
    struct mixer mixer;
    int64_t set_rows[N_SETS];
};

const int64_t sizeof_model = sizeof(struct model), sizeof_position = sizeof(struct position);

INLINE float logistic(float x) { return 1.0f / (1.0f + fast_exp(-x)); }
INLINE float clip(float x, float limit) { return x < -limit ? -limit : x > limit ? limit : x; }

/* log(x) for normal x > 0 (Moshier, Cephes), in a form that compilers vectorise. */
INLINE float fast_log(float x) {
    int32_t i;
    memcpy(&i, &x, 4);
    int32_t exponent = (i - 0x3f3504f3) >> 23; /* so that the mantissa is in [sqrt(1/2), sqrt(2)) */
    i -= exponent << 23;
    memcpy(&x, &i, 4);
    x -= 1;
    float y = 7.0376836292e-2f, z = x * x;
    y = y * x - 1.1514610310e-1f;
    y = y * x + 1.1676998740e-1f;
    y = y * x - 1.2420140846e-1f;
    y = y * x + 1.4249322787e-1f;
    y = y * x - 1.6668057665e-1f;
    y = y * x + 2.0000714765e-1f;
    y = y * x - 2.4999993993e-1f;
    y = y * x + 3.3333331174e-1f;
    return x - 0.5f * z + y * x * z + (float)exponent * 0.69314718f;
}

INLINE float within(float p, float limit) { return p < limit ? limit : p > 1 - limit ? 1 - limit : p; }
INLINE float fast_logit(float p) {
    p = within(p, 1e-4f);
    return fast_log(p / (1 - p));
}

struct walk {
    const struct model *m;
    const struct position *p;
    uint64_t hashes[N_CONTEXTS], *slots[N_CONTEXTS];
    struct evidence evidence[N_CONTEXTS];
    int32_t expected[N_MATCHES], match_level[N_MATCHES]; /* rank (-1: none), its cell's level */
    int64_t order, selectors[N_SETS];
    uint64_t apm_hashes[N_APMS];
};

/* A node, and each context's evidence below it; that below its left child ends in the middle. */
struct subtree {
    int64_t node, depth;
    int32_t begin[N_CONTEXTS], middle[N_CONTEXTS], end[N_CONTEXTS];
};

struct decision {
    struct subtree at;
    int64_t depth3, depth4, lo, hi; /* lo, hi: the ranks below the node */
    float inputs[N_INPUTS] __attribute__((aligned(64)));
    float *cells[N_INPUTS]; /* of the inputs that have one */
    int32_t n_cells, cell_inputs[N_INPUTS];
    int32_t n_matches, match_bits[N_MATCHES]; /* the last cells, in reverse order */
    float *rows[N_SETS], logits[N_SETS], final[2];
    float *bins[N_APMS], fraction;
};

INLINE int level_of(const struct model *m, uint64_t n) { return m->levels[n < 4096 ? n : 4096 + (n >= 16384)]; }
INLINE float log_of(const struct model *m, uint64_t n) { return m->logs[n < 4096 ? n : 4095]; }
INLINE int recent_level(uint64_t n) {
    return n < 8 ? (int)n : n < 12 ? 8 : n < 16 ? 9 : n < 24 ? 10 : n < 40 ? 11 : n < 80 ? 12 : 13;
}

INLINE void add_cell(struct decision *d, int i, float *cell) {
    __builtin_prefetch(cell);
    d->cell_inputs[d->n_cells] = i;
    d->cells[d->n_cells++] = cell;
}

/* Move the evidence in [begin, end) that is below the left child to the front, keeping its order, and sum its counts
   on each side. Returns where the right child's begins. */
static int32_t divide(struct evidence *e, int32_t begin, int32_t end, uint32_t node, uint64_t sums[2]) {
    uint32_t ranks[MAX_LIST];
    uint64_t counts[MAX_LIST];
    int32_t n_left = begin, n_right = 0;
    sums[0] = sums[1] = 0;
    if (end - begin == 1) { /* by far the most common */
        uint32_t right = e->ranks[begin] >= node;
        sums[right] = e->counts[begin];
        return begin + !right;
    }
    for (int32_t i = begin; i < end; i++) {
        uint32_t rank = e->ranks[i], right = rank >= node;
        uint64_t n = e->counts[i];
        sums[right] += n;
        e->ranks[n_left] = rank, e->counts[n_left] = n;
        ranks[n_right] = rank, counts[n_right] = n;
        n_left += !right, n_right += right;
    }
    memcpy(e->ranks + n_left, ranks, (size_t)n_right * sizeof *ranks);
    memcpy(e->counts + n_left, counts, (size_t)n_right * sizeof *counts);
    return n_left;
}

/* Three inputs of each context: the logit that its counts have had so far, and that its recent counts have; and that of
   its counts interpolated with the shorter context's (Witten & Bell 1991), which counts in how many contexts a token
   follows (Kneser & Ney 1995). Then the log-odds of the orders' counts. */
static void context_inputs(struct walk *w, struct decision *d) {
    const struct model *m = w->m;
    float p[N_CONTEXTS], lower[N_CONTEXTS], *cells = m->cells, p_node = m->node_cells[d->at.node * CELL];
    for (int c = 0; c < N_CONTEXTS; c++) {
        struct evidence *e = &w->evidence[c];
        p[c] = lower[c] = shorter[c] < 0 ? p_node : lower[shorter[c]];
        d->at.middle[c] = d->at.begin[c];
        d->inputs[c] = d->inputs[2 * N_CONTEXTS + c] = 0;
        if (c < N_ORDERS) d->inputs[3 * N_CONTEXTS + c] = 0;
        if (d->at.begin[c] == d->at.end[c]) continue;
        uint64_t sums[2], last = e->ranks[d->at.begin[c]] >= d->at.node;
        d->at.middle[c] = divide(e, d->at.begin[c], d->at.end[c], (uint32_t)d->at.node, sums);
        uint64_t n0 = bits(sums[0], 0, 24), n1 = bits(sums[1], 0, 24), c1 = bits(sums[1], 24, 24);
        float n = n0 + n1, rest = LOWER_SHARE * (d->at.end[c] - d->at.begin[c]), sum = bits(sums[0], 24, 24) + c1;
        p[c] = (n1 + rest * lower[c]) / (n + rest);
        lower[c] = longer[c] ? (c1 + rest * lower[c]) / (sum + rest) : p[c];
        if (c < N_ORDERS) d->inputs[3 * N_CONTEXTS + c] = (log_of(m, n1) - log_of(m, n0)) * (n < 15 ? n / 15 : 1);
        int64_t at = (d->depth3 * LEVELS + level_of(m, n0)) * LEVELS + level_of(m, n1);
        add_cell(d, c, cells + (c * COUNT_CELLS + at) * CELL);
        at = d->depth3 * RECENT_LEVELS + recent_level(sums[0] >> 48);
        at = (at * RECENT_LEVELS + recent_level(sums[1] >> 48)) * 2 + (int64_t)last;
        add_cell(d, 2 * N_CONTEXTS + c, cells + (N_CONTEXTS * COUNT_CELLS + c * RECENT_CELLS + at) * CELL);
    }
    for (int c = 0; c < N_CONTEXTS; c++) d->inputs[N_CONTEXTS + c] = fast_logit(p[c]);
}

/* Whether a rank is below neither child of the node (0), its left (1) or its right one (2). */
INLINE int64_t side_of(const struct decision *d, int64_t rank) {
    return rank < d->lo || rank >= d->hi ? 0 : 1 + (rank >= d->at.node);
}

static void other_inputs(struct walk *w, struct decision *d) {
    const struct model *m = w->m;
    int i = 3 * N_CONTEXTS + N_ORDERS;
    add_cell(d, i++, m->node_cells + d->at.node * CELL);
    for (int k = 0; k < N_MATCHES; k++, i++) {
        d->inputs[i] = 0;
        if (!side_of(d, w->expected[k])) continue;
        int64_t first = N_CONTEXTS * (COUNT_CELLS + RECENT_CELLS) + k * MATCH_CELLS;
        int64_t cell = first + w->match_level[k] * 4 + d->depth4;
        add_cell(d, i, m->cells + cell * CELL);
        d->match_bits[1] = d->match_bits[0];
        d->match_bits[0] = w->expected[k] >= d->at.node;
        d->n_matches++;
    }
    d->inputs[i++] = 0.5f;
    for (int j = 0; j < d->n_cells; j++) d->inputs[d->cell_inputs[j]] = d->cells[j][2];
    for (int k = 0; k < d->n_matches; k++)
        if (!d->match_bits[k]) d->inputs[d->cell_inputs[d->n_cells - 1 - k]] *= -1;
}

static float mix(const struct walk *w, struct decision *d) {
    const struct model *m = w->m;
    const struct mixer *x = &m->mixer;
    int64_t node = d->at.node, d4 = d->depth4, V = m->vocab_size;
    int expects = d->n_matches ? 1 + d->match_bits[0] : 0;
    int64_t rows[N_SETS] = {(w->selectors[0] * 3 + expects) * 4 + d4, w->selectors[1] * V + node,
                            w->selectors[2] * V + node, w->selectors[3] * 4 + d4, w->selectors[4],
                            w->selectors[5] * V + node, w->selectors[6] * V + node, w->selectors[7] * 4 + d4};
    for (int s = 8; s < N_SETS; s++)
        rows[s] = (w->selectors[s] * 3 + side_of(d, w->selectors[s] - 1)) * 4 + d4;
    float *by_node = x->by_node + node * N_SETS, *by_order = x->by_order + (w->order * 4 + d4) * N_SETS;
    float a = 0, b = 0;
    for (int s = 0; s < N_SETS; s++) {
        d->rows[s] = x->weights[s] + rows[s] % m->set_rows[s] * N_INPUTS;
        d->logits[s] = clip(dot(d->rows[s], d->inputs, N_INPUTS), 18);
        a += by_node[s] * d->logits[s];
        b += by_order[s] * d->logits[s];
    }
    d->final[0] = a, d->final[1] = b;
    float mean = 0.5f * (a + b), p = 2 * logistic(mean), at = clip(mean, 10.9f) + 11;
    for (int i = 0; i < N_APMS; i++) {
        uint64_t row = combine(w->apm_hashes[i], node) >> 20 & (APM_ROWS - 1);
        float *bin = x->apms + ((i * APM_ROWS + (int64_t)row) * BINS + (int)at), f = at - (int)at;
        d->bins[i] = bin, d->fraction = f;
        p += (bin[0] * (1 - f) + bin[1] * f) * (i ? 0.5f : 1.0f);
    }
    p *= 0.25f;
    return within(p, 1e-6f);
}

static void learn_mixer(const struct model *m, struct decision *d, int bit, int64_t order) {
    const struct mixer *x = &m->mixer;
    float *by_node = x->by_node + d->at.node * N_SETS, *by_order = x->by_order + (order * 4 + d->depth4) * N_SETS;
    float error_a = (bit - logistic(d->final[0])) * x->lr, error_b = (bit - logistic(d->final[1])) * x->lr;
    float joint_error = JOINT_SHARE * (bit - logistic(0.5f * (d->final[0] + d->final[1])));
    for (int s = 0; s < N_SETS; s++) {
        float error = (bit - logistic(d->logits[s])) * (1 - JOINT_SHARE) + joint_error, *row = d->rows[s];
        for (int64_t i = 0; i < N_INPUTS; i++) row[i] += x->lr * error * d->inputs[i];
        by_node[s] += error_a * d->logits[s];
        by_order[s] += error_b * d->logits[s];
    }
    for (int i = 0; i < N_APMS; i++) {
        float *bin = d->bins[i], f = d->fraction;
        bin[0] += (bit - bin[0]) * x->apm_lr * (1 - f);
        bin[1] += (bit - bin[1]) * x->apm_lr * f;
    }
}

/* Move the cells towards the bit, and those of matches towards whether they were right. */
static void learn_cells(struct decision *d, int bit) {
    float p[N_INPUTS], odds[N_INPUTS];
    int n = d->n_cells;
    for (int i = 0; i < n; i++) {
        float *cell = d->cells[i], x = cell[0];
        int target = i < n - d->n_matches ? bit : d->match_bits[n - 1 - i] == bit;
        x += (target - x) / (cell[1] + 1.5f);
        cell[1] += cell[1] < CELL_LIMIT;
        p[i] = x;
    }
    for (int i = 0; i < n; i++) odds[i] = fast_logit(p[i] = within(p[i], 1e-4f));
    for (int i = 0; i < n; i++) d->cells[i][0] = p[i], d->cells[i][2] = odds[i];
}
