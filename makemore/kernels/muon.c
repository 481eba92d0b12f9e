/* A step of Muon (Jordan et al. 2024): momentum, orthogonalisation by Newton-Schulz iteration, update.

   x (S, L) is a matrix whose rows are its shorter side; a taller one is transposed before and after. */

#include "matmul.h"

struct muon {
    int64_t rows, columns;       /* of each matrix, multiples of PANEL */
    int64_t iterations;
    float a, b, c;               /* an iteration: x = a x + (b A + c A A) x, where A = x x.T */
    float momentum, decay, rate; /* weights = decay * weights - rate * orthogonalised gradient */
};

const int64_t sizeof_muon = sizeof(struct muon);

static int64_t shorter_side(const struct muon *m) { return m->rows < m->columns ? m->rows : m->columns; }

int64_t workspace(const struct muon *m) { /* bytes */
    int64_t n = m->rows * m->columns, s = shorter_side(m);
    return (2 * n + 2 * s * s) * (int64_t)sizeof(elem) + n * (int64_t)sizeof(float) + 64;
}

/* Update the velocity; x = the gradient with Nesterov's momentum, divided by its norm. */
static void momentum_step(const struct muon *m, const float *restrict gradient, float *restrict velocity,
                          float *restrict sums, elem *restrict x) {
    int64_t n = m->rows * m->columns;
    for (int64_t i = 0; i < n; i++) {
        velocity[i] += (1 - m->momentum) * (gradient[i] - velocity[i]);
        sums[i] = gradient[i] + m->momentum * (velocity[i] - gradient[i]);
    }
    float scale = 1 / (sqrtf(dot(sums, sums, n)) + 1e-7f);
    for (int64_t i = 0; i < n; i++) sums[i] *= scale;
    to_elems(sums, x, n);
}

/* y = from * y + by * sums, n of each, a multiple of LANES */
static void combine(elem *y, float from, const float *sums, float by, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES)
        store_elems(y + i, from * load_elems(y + i) + by * *(const vec *)(sums + i));
}

/* One iteration on x (s, l); `packed` and `sums` hold as many numbers as x, `gram` (s, s). */
static void iterate(const struct muon *m, elem *x, int64_t s, int64_t l, pair *packed, float *sums, elem *gram) {
    pack_rows(x, l, s, l, packed);
    matmul(x, packed, s, l / STEP, s, sums, 0);
    to_elems(sums, gram, s * s);
    pack_rows(gram, s, s, s, packed);
    matmul(gram, packed, s, s / STEP, s, sums, 0);
    combine(gram, m->b, sums, m->c, s * s);
    pack_columns(x, l, s, l, packed);
    matmul(gram, packed, s, s / STEP, l, sums, 0);
    combine(x, m->a, sums, 1, s * l);
}

/* Update one matrix, given its gradient. */
void muon_step(const struct muon *m, float *weights, const float *gradient, float *velocity, char *memory) {
    int64_t rows = m->rows, columns = m->columns, n = rows * columns, s = shorter_side(m), l = n / s;
    float *sums = (float *)(memory + -(uintptr_t)memory % 64);
    elem *x = (elem *)(sums + n), *other = x + n, *gram = other + n;
    momentum_step(m, gradient, velocity, sums, x);
    if (rows > columns) {
        transpose(x, columns, rows, columns, other, rows);
        memcpy(x, other, n * sizeof(elem));
    }
    for (int64_t i = 0; i < m->iterations; i++) iterate(m, x, s, l, (pair *)other, sums, gram);
    end_tiles();
    if (rows > columns) {
        transpose(x, rows, columns, rows, other, columns);
        x = other;
    }
    for (int64_t i = 0; i < n; i += LANES) {
        vec *to = (vec *)(weights + i);
        *to = m->decay * *to - m->rate * load_elems(x + i);
    }
}
