// One thread allocates, another frees: a block's free is booked to the site that allocated it.
#include "common.h"
#include <pthread.h>

enum { COUNT = 100000, RING = 1024 };
static void *ring[RING];
static unsigned written, taken;

static void *produce(void *unused) {
    (void)unused;
    for (unsigned i = 0; i < COUNT; i++) {
        while (i - __atomic_load_n(&taken, __ATOMIC_ACQUIRE) >= RING) {}
        ring[i % RING] = keep(malloc(20 + i % 10)); // LEAK bytes=200000 blocks=10000 allocated=2450000/100000
        __atomic_store_n(&written, i + 1, __ATOMIC_RELEASE);
    }
    return NULL;
}

static void *consume(void *unused) {
    (void)unused;
    for (unsigned i = 0; i < COUNT; i++) {
        while (__atomic_load_n(&written, __ATOMIC_ACQUIRE) <= i) {}
        if (i % 10) {
            if (i % 3 == 0)
                free(keep(realloc(ring[i % RING], 3000))); // FREED bytes=90000000 blocks=30000
            else
                free(ring[i % RING]);
        }
        __atomic_store_n(&taken, i + 1, __ATOMIC_RELEASE);
    }
    return NULL;
}

int main(void) {
    pthread_t producer, consumer;
    check(pthread_create(&producer, NULL, produce, NULL) == 0); // LIBC
    check(pthread_create(&consumer, NULL, consume, NULL) == 0); // LIBC
    check(pthread_join(producer, NULL) == 0 && pthread_join(consumer, NULL) == 0);
    say("passed on\n");
    return 0;
}
