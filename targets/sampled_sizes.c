// Allocations of many sizes, each size at a line of its own, mixed in time: what a sample says of each line is compared with
// what is written here. `n` are the times a line is passed.
#include "common.h"
#include <pthread.h>

enum { ROUNDS = 2000 };

static void *grown, *shrunk;

static void *in_thread(void *argument) {
    keep(malloc(3000)); // IN_THREAD n=500 size=3000
    return argument;
}

int main(void) {
    for (int round = 0; round < ROUNDS; round++) {
        keep(malloc(0));                        // ZERO n=2000 size=0
        keep(malloc(1));                        // ONE n=2000 size=1
        keep(calloc(2, 8));                     // SIXTEEN n=2000 size=16
        keep(malloc(1000));                     // THOUSAND n=2000 size=1000
        free(keep(malloc(700)));                // CHURN n=2000 size=700 freed
        void *held = keep(malloc(600));         // HELD n=2000 size=600 freed
        free(keep(malloc(8)));
        free(held);
        if (round % 40 == 0) {
            keep(malloc(100 << 10));            // LARGE n=50 size=102400
            keep(aligned_alloc(64, 512 << 10)); // LARGER n=50 size=524288
        }
        if (round % 400 == 0) {
            keep(malloc(10 << 20));             // HUGE n=5 size=10485760
        }
        // A new block in each round, of which the last stays.
        grown = realloc(grown, 1024 + round);
        shrunk = realloc(NULL, 5000);           // SHRUNK n=2000 size=5000 freed
        shrunk = realloc(shrunk, 400);          // SHRINK n=2000 size=400
        void *whole;
        check(posix_memalign(&whole, 32, 96) == 0); // ALIGNED n=2000 size=96
    }
    // A thread's first allocation is as likely to be recorded as any.
    for (int turn = 0; turn < 500; turn++) {
        pthread_t thread;
        check(pthread_create(&thread, NULL, in_thread, NULL) == 0);
        check(pthread_join(thread, NULL) == 0);
    }
    say("done\n");
    return 0;
}
