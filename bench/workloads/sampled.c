/* The hot path of a sampled heap, for `cargo xtask bench sampled`.
 *
 * Each of --threads threads allocates a block and frees another, --ops times, over --ring blocks of 16 to 527 bytes; with a
 * ring of one it frees what it has just allocated. Beforehand --ballast blocks of 768 KiB are allocated, whose memory is never
 * touched: at one record per 512 KiB, about 78% of them are recorded, and stay.
 *
 * Prints `result pair_ns=VALUE`: processor time of a thread per pair, the mean over the threads (so that more threads than
 * cores measure the same).
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { RING_MAX = 1 << 16 };

static long threads = 1, ops = 1000000, ring = 1, ballast;

static double processor_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return time.tv_sec * 1e9 + time.tv_nsec;
}

static void *volatile *blocks_of_a_ring(void) {
    void *volatile *blocks = calloc(ring, sizeof *blocks);
    if (!blocks) abort();
    return blocks;
}

static void pairs(void *volatile *blocks, long count) {
    uint32_t state = 1;
    for (long i = 0; i < count; i++) {
        state = state * 1664525 + 1013904223;
        void *volatile *block = &blocks[(uint64_t)state * ring >> 32];
        /* With a ring of one: what was just allocated. */
        if (ring > 1) free(*block);
        *block = malloc(16 + (state >> 3) % 512);
        if (ring == 1) free(*block);
    }
}

static void *thread(void *result) {
    void *volatile *blocks = blocks_of_a_ring();
    pairs(blocks, ops / 10); /* the caches and the allocator's lists warm up */
    double begun = processor_ns();
    pairs(blocks, ops);
    *(double *)result = (processor_ns() - begun) / ops;
    return NULL;
}

int main(int argc, char **argv) {
    for (int i = 1; i + 1 < argc; i += 2) {
        long value = atol(argv[i + 1]);
        if (!strcmp(argv[i], "--threads")) threads = value;
        else if (!strcmp(argv[i], "--ops")) ops = value;
        else if (!strcmp(argv[i], "--ring")) ring = value;
        else if (!strcmp(argv[i], "--ballast")) ballast = value;
        else return 2;
    }
    if (threads < 1 || threads > 64 || ops < 1 || ring < 1 || ring > RING_MAX) return 2;
    for (long i = 0; i < ballast; i++)
        if (!malloc(768 << 10)) {
            fprintf(stderr, "no ballast: %ld blocks of 768 KiB\n", ballast);
            return 1;
        }
    pthread_t ids[64];
    double results[64], sum = 0;
    for (long i = 0; i < threads; i++)
        if (pthread_create(&ids[i], NULL, thread, &results[i])) return 1;
    for (long i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
        sum += results[i];
    }
    printf("result pair_ns=%.4f\n", sum / threads);
    return 0;
}
