// Fibers on stacks of their own, in heap blocks and in mappings: the stack's bounds are not the thread's.
#include "common.h"
#include <sys/mman.h>
#include <ucontext.h>

enum { FIBERS = 8, STACK = 65536 };
static ucontext_t scheduler, fibers[FIBERS];

KEEP_CALL void lose_in_fiber(void) {
    keep(malloc(88)); // LEAK bytes=11264 blocks=128
}

static void fiber(int index) {
    for (int i = 0; i < 16; i++) {
        void *block = keep(malloc(1000 + i)); // FREED bytes=128960 blocks=128
        lose_in_fiber();
        swapcontext(&fibers[index], &scheduler);
        free(block);
    }
}

int main(void) {
    for (int i = 0; i < FIBERS; i++) {
        check(getcontext(&fibers[i]) == 0);
        if (i % 2)
            fibers[i].uc_stack.ss_sp = keep(malloc(STACK)); // LEAK bytes=262144 blocks=4
        else
            fibers[i].uc_stack.ss_sp = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); // MAPPED bytes=262144 blocks=4
        fibers[i].uc_stack.ss_size = STACK;
        fibers[i].uc_link = &scheduler;
        makecontext(&fibers[i], (void (*)(void))fiber, 1, i);
    }
    for (int round = 0; round < 17; round++)
        for (int i = 0; i < FIBERS; i++) check(swapcontext(&scheduler, &fibers[i]) == 0);
    say("fibers\n");
    return 0;
}
