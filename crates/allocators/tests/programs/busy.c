/* Threads that do nothing but allocate and free, beside blocks that stay: torn heaps and threads inside malloc. */
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stdint.h>
#include <unistd.h>

#define STABLE 20000
#define SLOTS 256
#define THREADS 8
static void *stable[STABLE];
/* What each thread has; a test reads it while all are stopped. */
static void *all[THREADS][SLOTS];

static void *busy(void *argument)
{
    uint64_t state = (uintptr_t)argument;
    void **held = all[(uintptr_t)argument - 1];
    for (;;) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        unsigned slot = (state >> 33) % SLOTS;
        size_t size = (state >> 41) % ((state >> 60) ? 1500 : 60000);
        if (state >> 62) {
            free(held[slot]);
            held[slot] = malloc(size);
        } else {
            held[slot] = realloc(held[slot], size + 1);
        }
    }
    return 0;
}

static void *idle(void *argument)
{
    free(malloc(100));
    for (;;) pause();
    return argument;
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 2;
    for (int i = 0; i < STABLE; i++) {
        stable[i] = malloc(i % 300);
        free(malloc(i % 500));
    }
    pthread_t id;
    pthread_create(&id, 0, idle, 0);
    for (intptr_t i = 0; i < threads; i++) pthread_create(&id, 0, busy, (void *)(i + 1));
    static char buffer[1 << 16];
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    for (int i = 0; i < STABLE; i++) printf("B %lx %zu stable\n", (long)stable[i], malloc_usable_size(stable[i]));
    printf("V all %zu\nV slots %d\n", (size_t)all, THREADS * SLOTS);
    printf("END\n");
    fflush(stdout);
    for (;;) pause();
}
