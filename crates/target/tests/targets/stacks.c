// stacks coroutine: computes on a small stack inside of an array whose neighbours must not be touched.
// stacks sleeper: sleeps on such a stack.
// stacks rseq: two threads of one CPU count by restartable sequences, which lose nothing only if each is restarted
// after a preemption.
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/rseq.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

enum { STACK = 6144, SLACK = 65536 };
static struct {
    unsigned char below[SLACK], stack[STACK], above[SLACK];
} __attribute__((aligned(16))) area;
static ucontext_t back, inside;
static int sleeper;
static volatile uint64_t value;

static void body(void) {
    for (;;) {
        if (sleeper) {
            struct timespec limit = {0, 20000000};
            if (nanosleep(&limit, NULL)) abort();
        } else for (volatile int i = 0; i < 3000000; i++) value = value * 3 + 1;
        swapcontext(&inside, &back);
    }
}

static void check(void) {
    for (int i = 0; i < SLACK; i++)
        if (area.below[i] != 0x3c || area.above[i] != 0x3c) {
            printf("bad %d\n", i);
            fflush(stdout);
            abort();
        }
}

static int answered(void) {
    struct pollfd input = {0, POLLIN, 0};
    if (poll(&input, 1, 0) != 1) return 1;
    char line[64];
    if (read(0, line, sizeof line) <= 0) return 0;
    puts("fine");
    fflush(stdout);
    return 1;
}

static volatile int64_t counter;
static volatile int64_t successes[2];
static volatile int go = 1;

static void *counts(void *which) {
    struct rseq *area = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    sched_setaffinity(0, sizeof one, &one);
    while (go) {
        int64_t old, spins;
        __asm__ goto(
            ".pushsection __rseq_cs, \"aw\"\n.balign 32\n"
            "3: .long 0, 0\n .quad 1f, 2f - 1f, 4f\n.popsection\n"
            "lea 3b(%%rip), %[old]\n movq %[old], %[cs]\n"
            "1:\n"
            "movq %[counter], %[old]\n"
            "movq $1000000, %[spins]\n" // long enough for the other thread to come between
            "5: dec %[spins]\n jnz 5b\n"
            "inc %[old]\n"
            "movq %[old], %[counter]\n" // the commit
            "2: jmp %l[done]\n"
            ".pushsection __rseq_failure, \"ax\"\n"
            ".byte 0x0f, 0xb9, 0x3d\n .long 0x53053053\n" // RSEQ_SIG
            "4: jmp %l[aborted]\n.popsection\n"
            : [old] "=&r"(old), [spins] "=&r"(spins)
            : [cs] "m"(area->rseq_cs), [counter] "m"(counter)
            : "memory", "cc"
            : done, aborted);
    done:
        successes[(intptr_t)which]++;
    aborted:
        if (!which && poll(&(struct pollfd){0, POLLIN, 0}, 1, 0) == 1) go = 0;
    }
    return NULL;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "rseq")) {
        if (!__rseq_size) {
            puts("none");
            return 0;
        }
        // No third thread that waits: it would be the one that is taken for a call.
        pthread_t other;
        pthread_create(&other, NULL, counts, (void *)1);
        puts("ready");
        fflush(stdout);
        counts((void *)0);
        pthread_join(other, NULL);
        int64_t sum = successes[0] + successes[1];
        printf("%ld lost of %ld\n", (long)(sum - counter), (long)sum);
        return 0;
    }
    sleeper = !strcmp(what, "sleeper");
    memset(&area, 0x3c, sizeof area);
    getcontext(&inside);
    inside.uc_stack.ss_sp = area.stack;
    inside.uc_stack.ss_size = STACK;
    makecontext(&inside, body, 0);
    puts("ready");
    fflush(stdout);
    do {
        swapcontext(&back, &inside);
        check();
    } while (answered());
    return 0;
}
