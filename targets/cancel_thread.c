// Threads are cancelled, some at a cancellation point, some at any instruction; their cleanup handlers free.
#include "common.h"
#include <pthread.h>

static void release(void *block) { free(block); }

static void *waits(void *descriptor) {
    keep(malloc(90)); // LEAK bytes=1800 blocks=20
    void *block = keep(malloc(700)); // FREED bytes=14000 blocks=20
    pthread_cleanup_push(release, block);
    char byte;
    for (;;) (void)!read(*(int *)descriptor, &byte, 1);
    pthread_cleanup_pop(1);
    return NULL;
}

static volatile int spinning;

static void *spins(void *unused) {
    (void)unused;
    void *block = keep(malloc(800)); // FREED bytes=16000 blocks=20
    pthread_cleanup_push(release, block);
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
    __atomic_add_fetch(&spinning, 1, __ATOMIC_RELAXED);
    for (volatile long i = 0;; i++) {}
    pthread_cleanup_pop(1);
    return NULL;
}

int main(void) {
    int ends[2];
    check(pipe(ends) == 0);
    for (int i = 0; i < 20; i++) {
        pthread_t id;
        void *result;
        check(pthread_create(&id, NULL, waits, &ends[0]) == 0); // LIBC
        check(pthread_cancel(id) == 0); // LIBC
        check(pthread_join(id, &result) == 0 && result == PTHREAD_CANCELED);
        check(pthread_create(&id, NULL, spins, NULL) == 0); // LIBC
        while (__atomic_load_n(&spinning, __ATOMIC_RELAXED) <= i) usleep(100);
        check(pthread_cancel(id) == 0); // LIBC
        check(pthread_join(id, &result) == 0 && result == PTHREAD_CANCELED);
    }
    say("cancelled\n");
    return 0;
}
