/* Counts of continuations by context: a hash table whose slots hold a context's only continuation, or the position of
   a list of them. Layouts in bits, from the lowest; a zero slot is empty:

   slot, one continuation:  check 16, is_list 1, rank 20, count 14, continuations 13
   slot, list:              check 16, is_list 1, unused 15, position 32
   list:                    a header (size 32, capacity 32), then entries, last seen first:
   entry:                   rank 20, count 16, continuations 16, recent count 8

   A rank is a token's place among the leaves of the code tree. */

#define SLOTS 8 /* of a bucket: one cache line */
#define MAX_LIST 256
#define MAX_RECENT 60

struct evidence {
    int32_t size;
    uint32_t ranks[MAX_LIST];
    uint64_t counts[MAX_LIST]; /* count 24, continuations 24, recent count 16: sums don't overflow */
};

struct table {
    uint64_t *slots, *lists;
    int64_t n_buckets, lists_size;
    int64_t *counters; /* used part of lists; then, by log2 of the capacity, a free list's position (0: none) */
};

INLINE uint64_t bits(uint64_t x, int from, int n) { return x >> from & ((1ull << n) - 1); }
INLINE uint64_t at_most(uint64_t x, uint64_t limit) { return x < limit ? x : limit; }
INLINE uint64_t single(uint64_t check, uint64_t rank, uint64_t n, uint64_t c) {
    return check | rank << 17 | at_most(n, 16383) << 37 | at_most(c, 8191) << 51;
}
INLINE uint64_t entry(uint64_t rank, uint64_t n, uint64_t c, uint64_t r) {
    return rank | n << 20 | at_most(c, 65535) << 36 | r << 52;
}
INLINE uint64_t check_of(uint64_t hash) { return (hash & 0xffff) + !(hash & 0xffff); }
INLINE uint64_t *bucket_of(const struct table *t, uint64_t hash) {
    return t->slots + SLOTS * ((hash >> 32) * (uint64_t)t->n_buckets >> 32);
}

INLINE uint64_t *find_slot(const struct table *t, uint64_t hash) {
    uint64_t *bucket = bucket_of(t, hash), check = check_of(hash);
    uint32_t matching = 0;
    for (int i = 0; i < SLOTS; i++) matching |= (uint32_t)((bucket[i] & 0xffff) == check) << i;
    return matching ? bucket + __builtin_ctz(matching) : 0;
}

static void load_evidence(const struct table *t, const uint64_t *slot, struct evidence *e) {
    e->size = 0;
    if (!slot) return;
    if (!bits(*slot, 16, 1)) {
        uint64_t n = bits(*slot, 37, 14);
        e->size = 1;
        e->ranks[0] = bits(*slot, 17, 20);
        e->counts[0] = n | bits(*slot, 51, 13) << 24 | at_most(n, MAX_RECENT) << 48;
        return;
    }
    const uint64_t *list = t->lists + (*slot >> 32);
    e->size = (int32_t)list[0];
    for (int i = 0; i < e->size; i++) {
        uint64_t x = list[i + 1];
        e->ranks[i] = bits(x, 0, 20);
        e->counts[i] = bits(x, 20, 16) | bits(x, 36, 16) << 24 | bits(x, 52, 8) << 48;
    }
}

/* A list for 2^log2_capacity entries; 0 if the memory is full. */
static uint64_t new_list(struct table *t, int log2_capacity) {
    int64_t *free = t->counters + 1 + log2_capacity, position = *free, size = 1 + (1ll << log2_capacity);
    if (position)
        *free = (int64_t)t->lists[position];
    else {
        if (t->counters[0] + size > t->lists_size) return 0;
        position = t->counters[0];
        t->counters[0] += size;
    }
    t->lists[position] = (uint64_t)log2_capacity << 32;
    return (uint64_t)position;
}

static void halve(uint64_t *entries, uint64_t size) {
    for (uint64_t i = 0; i < size; i++) {
        uint64_t x = entries[i];
        entries[i] = entry(bits(x, 0, 20), (bits(x, 20, 16) + 1) / 2, (bits(x, 36, 16) + 1) / 2, bits(x, 52, 8));
    }
}

/* Count a rank in a list. Returns whether it is new here; is_new: in the longer context. */
static int count_in_list(struct table *t, uint64_t *slot, uint64_t rank, uint64_t is_new) {
    uint64_t *list = t->lists + (*slot >> 32), size = (uint32_t)list[0], capacity = 1ull << (list[0] >> 32);
    uint64_t i = 0, n = 0, c = 0, recent = 0;
    for (; i < size; i++)
        if (bits(list[i + 1], 0, 20) == rank) break;
    if (i < size) {
        n = bits(list[i + 1], 20, 16), c = bits(list[i + 1], 36, 16), recent = bits(list[i + 1], 52, 8);
    } else if (size == capacity && size == MAX_LIST) {
        i--; /* replaces the one that was last seen longest ago */
    } else if (size == capacity) {
        int log2_capacity = (int)(list[0] >> 32);
        uint64_t position = new_list(t, log2_capacity + 1);
        if (!position) return 1;
        uint64_t *larger = t->lists + position;
        memcpy(larger + 1, list + 1, size * sizeof *list);
        list[0] = (uint64_t)t->counters[1 + log2_capacity];
        t->counters[1 + log2_capacity] = (int64_t)(*slot >> 32);
        *slot = bits(*slot, 0, 17) | position << 32;
        list = larger;
        list[0] = (uint64_t)(log2_capacity + 1) << 32 | (size + 1);
    } else
        list[0]++;
    for (; i > 0; i--) list[i + 1] = list[i];
    list[1] = entry(rank, n + 1, c + is_new, at_most(recent + 1, MAX_RECENT));
    size = (uint32_t)list[0];
    for (i = 1; i < size; i++) {
        uint64_t r = bits(list[i + 1], 52, 8);
        if (r > 2) list[i + 1] -= (r - (r * 5 + 4) / 8) << 52; /* others fade */
    }
    if (n + 1 == 65535) halve(list + 1, size);
    return n == 0;
}

/* Count a rank in a context whose slot may be missing. Returns and takes the same as count_in_list. */
INLINE int count(struct table *t, uint64_t hash, uint64_t *slot, uint64_t rank, uint64_t is_new) {
    if (!slot) {
        /* An empty slot or, without one, the rarest context with one continuation; lists stay. */
        uint64_t *bucket = bucket_of(t, hash), lowest = ~0ull;
        for (int i = 0; i < SLOTS; i++) {
            uint64_t *other = bucket + (i + (hash >> 16)) % SLOTS;
            uint64_t n = bits(*other, 16, 1) ? ~0ull : bits(*other, 37, 14);
            if (n < lowest) lowest = n, slot = other;
        }
        if (slot) *slot = single(check_of(hash), rank, 1, is_new);
    } else if (bits(*slot, 16, 1))
        return count_in_list(t, slot, rank, is_new);
    else if (bits(*slot, 17, 20) == rank) {
        *slot = single(*slot & 0xffff, rank, bits(*slot, 37, 14) + 1, bits(*slot, 51, 13) + is_new);
        return 0;
    } else {
        uint64_t position = new_list(t, 1), n = bits(*slot, 37, 14), recent = at_most(n, MAX_RECENT);
        if (!position) return 1;
        uint64_t *list = t->lists + position;
        list[0] |= 1;
        list[1] = entry(bits(*slot, 17, 20), n, bits(*slot, 51, 13), recent);
        *slot = (*slot & 0xffff) | 1 << 16 | position << 32;
        count_in_list(t, slot, rank, is_new);
    }
    return 1;
}
