// The process forks while its other threads are inside the allocator. Each child must be able to allocate, and what it loses
// is its own loss, not the parent's.
#include "common.h"
#include <pthread.h>
#include <sys/wait.h>

static int stop;

static void *churn(void *seed) {
    unsigned state = (unsigned)(long)seed;
    void *blocks[64] = {0};
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        state = state * 1664525 + 1013904223;
        unsigned slot = state >> 26;
        free(blocks[slot]);
        blocks[slot] = malloc(16 + (state >> 8) % 1000); // FREED
    }
    for (int i = 0; i < 64; i++) free(blocks[i]);
    return NULL;
}

int main(void) {
    pthread_t threads[3];
    for (long i = 0; i < 3; i++) check(pthread_create(&threads[i], NULL, churn, (void *)(i + 1)) == 0); // LIBC
    keep(malloc(77)); // LEAK bytes=77 blocks=1
    for (int i = 0; i < 40; i++) {
        pid_t child = fork();
        check(child >= 0);
        if (child == 0) {
            for (int n = 0; n < 10; n++) keep(malloc(123)); // LEAK bytes=1230 blocks=10 in=child
            void *grown = keep(malloc(10)); // FREED bytes=10 blocks=1 in=child
            free(keep(realloc(grown, 100000))); // FREED bytes=100000 blocks=1 in=child
            _exit(7);
        }
        int status;
        check(waitpid(child, &status, 0) == child);
        check(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
    keep(malloc(78)); // LEAK bytes=78 blocks=1
    say("40 children\n");
    return 0;
}
