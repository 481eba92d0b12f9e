/* Sampling from smoothed n-grams, one row at a time. Uses the same arithmetic in the same order as CountDecoder.sample
   in numpy, so it samples the same tokens, but without numpy's call overhead. */

#include <stdint.h>

struct trie {
    int64_t contexts, boundary, token_bytes;
    const void *tokens;
    const int32_t *first, *suffixes;
    const float *shares, *rests;
    const double *unigram;
};

const int64_t sizeof_trie = sizeof(struct trie);

static int64_t token_of(const struct trie *t, int64_t node)
{
    switch (t->token_bytes) {
    case 1: return ((const uint8_t *)t->tokens)[node];
    case 2: return ((const int16_t *)t->tokens)[node];
    default: return ((const int32_t *)t->tokens)[node];
    }
}

/* The child that a token leads to, or -1. */
static int64_t child(const struct trie *t, int64_t node, int64_t token)
{
    int64_t low = t->first[node], end = t->first[node + 1], high = end;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (token_of(t, middle) < token)
            low = middle + 1;
        else
            high = middle;
    }
    return low < end && token_of(t, low) == token ? low : -1;
}

static int64_t as_context(const struct trie *t, int64_t node)
{
    return node >= t->contexts ? t->suffixes[node] : node;
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
    int64_t first = t->first[node], last = t->first[node + 1] - 1, i = first;
    double sum = 0;
    for (; i < last; i++) {
        sum += node ? t->shares[i] : t->unigram[i - first];
        if (u < sum)
            break;
    }
    return i;
}

/* Sample a token per row by uniform (rows,) in [0, 1) into ids (rows,), and advance nodes (rows,). */
void sample(const struct trie *t, int64_t rows, int64_t *nodes, const double *uniform, int64_t *ids)
{
    for (int64_t row = 0; row < rows; row++) {
        int64_t node = nodes[row];
        double u = uniform[row], kept;
        while (kept = 1 - (double)t->rests[node], node != 0 && u >= kept) {
            u = (u - kept) / t->rests[node];
            node = t->suffixes[node];
        }
        int64_t picked = pick(t, node, u), token = token_of(t, picked);
        int64_t leads_on = node == nodes[row] && token != t->boundary;
        nodes[row] = leads_on ? as_context(t, picked) : after(t, nodes[row], token);
        ids[row] = token;
    }
}
