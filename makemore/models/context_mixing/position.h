/* What the contexts need to know of a document's past, and the contexts' hashes. All fields are int64, so that a
   position is a row of the model's state. plain.py does the same in Python. */

#define RECENT 32
#define COLUMNS 96

enum { BOUNDARY, NEWLINE, SPACE, LETTER, UPPER, DIGIT, PUNCTUATION };

struct position {
    int64_t recent[RECENT];           /* last tokens, newest first */
    int64_t folded[8];                /* the same without case, white space collapsed */
    int64_t line[COLUMNS], above[COLUMNS];
    int64_t word, words[3];           /* hash of the current word (0: none), of the three before it */
    int64_t suffix;                   /* hash of the last word's end */
    int64_t gap;                      /* hash of the tokens since the last word */
    int64_t word_length, column, indent, n_words;
    int64_t first, firsts[2];         /* hashes of this line's first word and those of the lines above */
    int64_t opening, heading;         /* hash of this line; of the line after the last blank line */
    int64_t is_heading, kinds, is_capital;
    int64_t match[2], match_length[2];
};

INLINE uint64_t combine(uint64_t hash, uint64_t x) {
    hash = (hash + x + 1) * 0x9E3779B97F4A7C15u;
    return hash ^ hash >> 32;
}

static void begin_document(struct position *p, int64_t boundary) {
    memset(p, 0, sizeof *p);
    for (int i = 0; i < RECENT; i++) p->recent[i] = boundary;
    for (int i = 0; i < 8; i++) p->folded[i] = boundary;
    p->is_heading = 1;
}

INLINE int is_word(int64_t kind) { return kind >= LETTER && kind <= DIGIT; }

static void end_word(struct position *p, const uint8_t *kinds) {
    p->words[2] = p->words[1], p->words[1] = p->words[0], p->words[0] = p->word;
    p->suffix = 0;
    for (int i = 1; i < 4 && is_word(kinds[p->recent[i]]); i++) p->suffix = combine(p->suffix, p->recent[i]);
    p->word = p->word_length = p->gap = 0;
    p->n_words++;
}

static void end_line(struct position *p) {
    if (p->is_heading) p->heading = p->opening;
    p->is_heading = p->column == 1;
    memcpy(p->above, p->line, sizeof p->line);
    memset(p->line, 0, sizeof p->line);
    p->firsts[1] = p->firsts[0], p->firsts[0] = p->first;
    p->first = p->opening = p->column = p->indent = p->n_words = 0;
}

/* Append a token; the boundary begins a document. */
static void push(struct position *p, int64_t token, int64_t boundary, const uint8_t *kinds, const int32_t *folded) {
    if (token == boundary) {
        begin_document(p, boundary);
        return;
    }
    int kind = kinds[token];
    memmove(p->recent + 1, p->recent, sizeof p->recent - sizeof *p->recent);
    p->recent[0] = token;
    if (kind > SPACE || kinds[p->folded[0]] > SPACE) {
        memmove(p->folded + 1, p->folded, sizeof p->folded - sizeof *p->folded);
        p->folded[0] = folded[token];
    }
    if (is_word(kind)) {
        if (!p->word_length++) p->is_capital = kind == UPPER;
        p->word = combine(p->word, folded[token]);
    } else if (p->word_length)
        end_word(p, kinds);
    if (!is_word(kind)) p->gap = combine(p->gap, token);
    p->kinds = p->kinds << 3 | kind;
    if (p->column < COLUMNS) p->line[p->column] = token;
    if (kind == SPACE && p->indent == p->column) p->indent++;
    p->column++;
    p->opening = combine(p->opening, token);
    if (p->n_words == 0) p->first = combine(p->word, p->indent);
    if (kind == NEWLINE) end_line(p);
}

enum {
    O1, O2, O3, O4, O5, O6, O7, O8, O10, O12, /* last tokens */
    W1, W2, W3, W13, WS,                      /* words: current, and one, two before it, skipping one, its end */
    F3, F5, F7,                               /* last tokens without case */
    S24, S35, S2,                             /* skipping the last tokens */
    LW, LH, LA, LC, LI, LL,                   /* the line */
    N_CONTEXTS
};
/* The context without the oldest token or word, which also counts new continuations of this one; for others, the
   context that is trusted when nothing is known; -1: none. */
static const int shorter[N_CONTEXTS] = {-1, O1, O2, O3, O4, O5, O6, O7, O8, O10, -1, W1, W2, O3,
                                        O3, -1, F3, F5, O3, O3, O3, O3, O3, O3,  O3, O3, O3};
/* Contexts that count continuations that are new in the longer one; 0: none. */
static const int longer[N_CONTEXTS] = {O2, O3, O4, O5, O6, O7, O8, 0, 0, 0, W2, W3, 0, 0, 0, F5, F7};

static void context_hashes(const struct position *p, uint64_t *hashes) {
    static const int orders[] = {1, 2, 3, 4, 5, 6, 7, 8, 10, 12};
    const int64_t *t = p->recent;
    uint64_t hash = 0;
    for (int order = 0, i = 0; i <= O12 - O1; order++) {
        if (order == orders[i]) hashes[O1 + i++] = hash;
        hash = combine(hash, t[order]);
    }
    uint64_t word = combine(p->word, p->word_length ? 0 : t[0]);
    uint64_t place = combine(p->word, p->word_length ? 0 : p->gap);
    hashes[W1] = word;
    hashes[W2] = combine(place, p->words[0]);
    hashes[W3] = combine(hashes[W2], p->words[1]);
    hashes[W13] = combine(word, p->words[1]);
    hashes[WS] = combine(word, p->suffix);
    hash = 0;
    for (int i = 0; i < 7; i++) {
        hash = combine(hash, p->folded[i]);
        if (i == 2) hashes[F3] = hash;
        if (i == 4) hashes[F5] = hash;
    }
    hashes[F7] = hash;
    hashes[S24] = combine(combine(combine(0, t[1]), t[2]), t[3]);
    hashes[S35] = combine(combine(combine(p->kinds & 7, t[2]), t[3]), t[4]);
    int64_t word_length = p->word_length > 7 ? 7 : p->word_length;
    hashes[S2] = combine(combine(0, t[1]), t[2] * 64 + word_length);
    int64_t column = p->column < 3 ? p->column : 3 + p->n_words;
    hashes[LW] = combine(word, column * 2 + p->is_heading);
    hashes[LH] = p->is_heading ? combine(p->opening, p->heading) : combine(word, p->heading);
    int64_t above = p->column < COLUMNS ? p->above[p->column] : 0;
    hashes[LA] = combine(combine(above, t[0]), p->column < COLUMNS ? p->above[(p->column + 1) % COLUMNS] : 0);
    hashes[LC] = combine(combine(p->column, above), t[0]);
    hashes[LI] = combine(combine(word, p->firsts[0]), p->column > 2 ? p->line[0] * 256 + p->first : p->first);
    hashes[LL] = combine(combine(word_length, t[0]), combine(t[1], p->n_words > 7 ? 7 : p->n_words));
}
