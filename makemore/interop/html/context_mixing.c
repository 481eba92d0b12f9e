/* Context mixing in a web page: reads the training text again to count it, then predicts. `make engine` compiles this to
   context_mixing.wasm; see context_mixing.js. */

#include <stdlib.h>

#include "../../models/context_mixing/engine.c"

#define EXPORT(name) __attribute__((export_name(#name)))

__attribute__((used)) const char sources[] = "sources " SOURCES;

static struct model model;
static struct position position; /* of the predicted text */
static struct position reading;  /* of the training text */
static int64_t n_history, counters[16];

/* Zeroed memory; 0 if there isn't enough. */
EXPORT(allocate) void *allocate(uint32_t bytes) { return calloc(bytes, 1); }

EXPORT(set_tree) void set_tree(int vocab_size, int boundary, int root, int boundary_node, int boundary_side, int has_boundary) {
    model.vocab_size = vocab_size, model.boundary = boundary, model.has_boundary = has_boundary;
    model.root = root, model.boundary_node = boundary_node, model.boundary_side = boundary_side;
}

EXPORT(set_tokens) void set_tokens(uint8_t *kinds, int32_t *folded, int32_t *rank_of, int32_t *token_of, int32_t *left, int32_t *right) {
    model.kinds = kinds, model.folded = folded, model.rank_of = rank_of, model.token_of = token_of;
    model.left = left, model.right = right;
}

EXPORT(set_table) void set_table(uint64_t *slots, int n_slots, uint64_t *lists, int lists_size) {
    counters[0] = 1;
    model.table = (struct table){slots, lists, n_slots / SLOTS, lists_size, counters};
}

EXPORT(set_history) void set_history(int32_t *history, int size, int32_t *match_table, int match_slots) {
    model.history = history, model.history_size = size, model.n_history = &n_history;
    model.match_table = match_table, model.match_slots = match_slots;
}

EXPORT(set_cells) void set_cells(float *logs, uint8_t *levels, float *cells, float *node_cells) {
    model.logs = logs, model.levels = levels, model.cells = cells, model.node_cells = node_cells;
}

EXPORT(set_mixer) void set_mixer(float *weights, float *by_node, float *by_order, float *apms) {
    model.mixer.by_node = by_node, model.mixer.by_order = by_order, model.mixer.apms = apms;
    for (int s = 0; s < N_SETS; s++) {
        model.mixer.weights[s] = weights;
        weights += model.set_rows[s] * N_INPUTS;
    }
}

EXPORT(set_rows) void set_rows(int set, int rows) { model.set_rows[set] = rows; }

/* Count the tokens that follow the history's tokens begin to end - 1, as training did, without changing weights. */
EXPORT(count_text) void count_text(int begin, int end) {
    struct walk w;
    for (int i = begin; i < end; i++) {
        int64_t token = model.history[i], next = model.history[i + 1];
        push(&reading, token, model.boundary, model.kinds, model.folded);
        remember(&model, &reading, token);
        if (next == model.boundary && (token == model.boundary || !model.has_boundary)) continue;
        find_contexts(&model, &reading, &w);
        count_token(&model, &w, (uint64_t)model.rank_of[next]);
    }
}

EXPORT(position_address) void *position_address(void) { return &position; }
EXPORT(position_size) int position_size(void) { return sizeof position; }

/* Append a token to the predicted text; unless it is null, logits (V,) of the next token. */
EXPORT(step) void step(int token, float *logits) {
    int64_t id = token;
    distributions(&model, 1, 1, &id, &position, logits);
}
