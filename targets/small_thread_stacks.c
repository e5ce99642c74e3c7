// Threads with the smallest stack that POSIX allows, and with stacks that the program made itself: a hook must need little.
#include "common.h"
#include <limits.h>
#include <pthread.h>
#include <sys/mman.h>

static void *thread(void *unused) {
    (void)unused;
    for (int i = 0; i < 50; i++) {
        void *block = keep(malloc(10 + i)); // FREED bytes=34500 blocks=1000
        block = keep(realloc(block, 200)); // FREED bytes=200000 blocks=1000
        free(block);
    }
    keep(calloc(2, 25)); // LEAK bytes=1000 blocks=20
    return NULL;
}

int main(void) {
    pthread_attr_t attributes;
    check(pthread_attr_init(&attributes) == 0);
    check(pthread_attr_setstacksize(&attributes, PTHREAD_STACK_MIN) == 0);
    pthread_t threads[10];
    for (int i = 0; i < 10; i++) check(pthread_create(&threads[i], &attributes, thread, NULL) == 0); // LIBC
    for (int i = 0; i < 10; i++) check(pthread_join(threads[i], NULL) == 0);

    void *stack = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); // MAPPED bytes=65536 blocks=1
    check(stack != MAP_FAILED);
    for (int i = 0; i < 10; i++) {
        check(pthread_attr_setstack(&attributes, stack, 65536) == 0);
        check(pthread_create(&threads[0], &attributes, thread, NULL) == 0); // LIBC
        check(pthread_join(threads[0], NULL) == 0);
    }
    pthread_attr_destroy(&attributes);
    say("small stacks\n");
    return 0;
}
