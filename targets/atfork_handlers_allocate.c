// Handlers registered by pthread_atfork allocate and free on both sides of a fork.
#include "common.h"
#include <pthread.h>
#include <sys/wait.h>

static void *carried;

static void prepare(void) {
    carried = keep(malloc(500)); // LEAK bytes=1000 blocks=2
}

static void in_parent(void) {
    keep(malloc(20)); // LEAK bytes=40 blocks=2
}

static void in_child(void) {
    free(carried);
    keep(malloc(30)); // LEAK bytes=30 blocks=1 in=child
}

int main(void) {
    check(pthread_atfork(prepare, in_parent, in_child) == 0);
    for (int i = 0; i < 2; i++) {
        pid_t child = fork();
        check(child >= 0);
        if (child == 0) {
            keep(malloc(40)); // LEAK bytes=40 blocks=1 in=child
            exit(0);
        }
        int status;
        check(waitpid(child, &status, 0) == child && status == 0);
    }
    say("forked\n");
    return 0;
}
