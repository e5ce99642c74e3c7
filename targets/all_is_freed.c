// Four threads allocate, reallocate and free for each other; at the end nothing is left, so no sample can be.
#include "common.h"
#include <pthread.h>

enum { THREADS = 4, SLOTS = 4096, TURNS = 200000 };

static void *slots[SLOTS];

static void *churn(void *argument) {
    unsigned state = 17 + (unsigned)(long)argument;
    for (int turn = 0; turn < TURNS; turn++) {
        state = state * 1664525 + 1013904223;
        void **slot = &slots[state >> 20];
        unsigned size = (state >> 4) % 3000;
        void *mine = __atomic_exchange_n(slot, NULL, __ATOMIC_ACQ_REL);
        if (mine && state % 3 == 0) mine = realloc(mine, size + 1); // FREED
        else if (mine) free(mine), mine = NULL;
        else mine = calloc(1, size); // FREED
        free(__atomic_exchange_n(slot, mine, __ATOMIC_ACQ_REL));
    }
    return NULL;
}

int main(void) {
    pthread_t threads[THREADS];
    for (long i = 0; i < THREADS; i++) check(pthread_create(&threads[i], NULL, churn, (void *)i) == 0); // LIBC
    for (int i = 0; i < THREADS; i++) check(pthread_join(threads[i], NULL) == 0);
    for (int i = 0; i < SLOTS; i++) free(slots[i]);
    say("done\n");
    return 0;
}
