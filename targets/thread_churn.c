// Thousands of short-lived threads, several at a time: the tracer's memory must not grow with threads that are gone.
#include "common.h"
#include <pthread.h>

static void *thread(void *unused) {
    (void)unused;
    for (int i = 0; i < 4; i++) free(keep(malloc(100 + i))); // FREED bytes=812000 blocks=8000
    return keep(malloc(32)); // LEAK bytes=64000 blocks=2000
}

int main(void) {
    for (int round = 0; round < 250; round++) {
        pthread_t threads[8];
        for (int i = 0; i < 8; i++) check(pthread_create(&threads[i], NULL, thread, NULL) == 0); // LIBC
        for (int i = 0; i < 8; i++) check(pthread_join(threads[i], NULL) == 0);
    }
    say("2000 threads\n");
    return 0;
}
