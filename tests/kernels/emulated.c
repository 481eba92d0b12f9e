/* Reads a model and a batch, and writes the summed nats and the gradients; see test_emulated.py. */

#include "transformer.c"

#include <stdio.h>
#include <stdlib.h>

static void *read_array(FILE *file) {
    int64_t bytes;
    if (fread(&bytes, sizeof bytes, 1, file) != 1) exit(1);
    void *array = aligned_alloc(64, (size_t)round_up(bytes, 64));
    if (fread(array, 1, (size_t)bytes, file) != (size_t)bytes) exit(1);
    return array;
}

int main(int argc, char **argv) {
    if (argc != 3) return 1;
    FILE *in = fopen(argv[1], "rb"), *out = fopen(argv[2], "wb");
    if (!in || !out) return 1;
    int64_t *n = read_array(in), n_weights = n[10];
    float *f = read_array(in), *cos = read_array(in), *sin = read_array(in);
    const float **weights = malloc((size_t)n_weights * sizeof *weights);
    for (int64_t i = 0; i < n_weights; i++) weights[i] = read_array(in);
    int64_t *inputs = read_array(in), *targets = read_array(in), *starts = read_array(in);
    struct model m = {n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], f[0], f[1], f[2], cos, sin, weights, NULL};
    struct batch b = {n[9], 0, n[8], inputs, targets, starts, 0};
    m.packed = malloc((size_t)packed_size(&m));
    char *memory = malloc((size_t)(workspace(&m, b.length) + packed_size(&m)));
    float *grads = malloc((size_t)n_gradients(&m) * sizeof *grads);
    pack_weights(&m, (elem *)memory);
    double nats = loss_and_grads(&m, &b, 1, memory, grads);
    int64_t sizes[] = {panel, n_gradients(&m)};
    fwrite(sizes, sizeof *sizes, 2, out);
    fwrite(&nats, sizeof nats, 1, out);
    fwrite(grads, sizeof *grads, (size_t)n_gradients(&m), out);
    return fclose(out);
}
