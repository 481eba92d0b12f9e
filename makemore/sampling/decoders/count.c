/* Sampling from smoothed n-grams, one row at a time. Uses the same arithmetic in the same order as CountDecoder.sample
   in numpy, so it samples the same tokens, but without numpy's call overhead. */

#include <stdint.h>

struct trie {
    int64_t inner, boundary;
    const int64_t *tokens, *suffixes, *firsts, *lasts;
    const double *rests, *sums;
};

const int64_t sizeof_trie = sizeof(struct trie);

/* The child that a token leads to, or -1. */
static int64_t child(const struct trie *t, int64_t node, int64_t token)
{
    int64_t low = t->firsts[node], high = t->lasts[node] + 1;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (t->tokens[middle] < token)
            low = middle + 1;
        else
            high = middle;
    }
    return low <= t->lasts[node] && t->tokens[low] == token ? low : -1;
}

static int64_t as_context(const struct trie *t, int64_t node)
{
    return node >= t->inner ? t->suffixes[node] : node;
}

/* The longest known context after one more token; the empty context has every token. */
static int64_t after(const struct trie *t, int64_t node, int64_t token)
{
    int64_t next;
    if (token == t->boundary)
        node = 0;
    while ((next = child(t, node, token)) < 0)
        node = t->suffixes[node];
    return as_context(t, next);
}

/* The child in whose part of the running sum u lies; rounding may overshoot the last child. */
static int64_t pick(const struct trie *t, int64_t node, double u)
{
    int64_t low = t->firsts[node], high = t->lasts[node];
    double x = t->sums[low - 1] + u;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (t->sums[middle] <= x)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Sample a token per row by uniform (rows,) in [0, 1) into ids (rows,), and advance nodes (rows,). */
void sample(const struct trie *t, int64_t rows, int64_t *nodes, const double *uniform, int64_t *ids)
{
    for (int64_t row = 0; row < rows; row++) {
        int64_t node = nodes[row];
        double u = uniform[row], kept;
        while (kept = 1 - t->rests[node], node != 0 && u >= kept) {
            u = (u - kept) / t->rests[node];
            node = t->suffixes[node];
        }
        int64_t picked = pick(t, node, u), token = t->tokens[picked];
        int64_t leads_on = node == nodes[row] && token != t->boundary;
        nodes[row] = leads_on ? as_context(t, picked) : after(t, nodes[row], token);
        ids[row] = token;
    }
}
