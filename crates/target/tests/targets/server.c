// server many: threads in epoll_wait, sleep, computation and malloc; the main thread answers.
// server sleep, server read: one thread only, which sleeps between two looks at its input, or waits for it.
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what) {
    printf("bad %s %s\n", what, strerror(errno));
    fflush(stdout);
    abort();
}
static void *polls(void *unused) {
    int epoll = epoll_create1(0);
    struct epoll_event event;
    for (;;)
        if (epoll_wait(epoll, &event, 1, 20) != 0 && !(errno == EINTR && getenv("MAY_BE_INTERRUPTED")))
            fail("epoll_wait");
    return unused;
}
static void *sleeps(void *unused) {
    struct timespec limit = {0, 20000000};
    for (;;)
        if (nanosleep(&limit, NULL)) fail("nanosleep");
    return unused;
}
static void *allocates(void *unused) {
    double sum = 1;
    for (unsigned i = 1;; i++) {
        char *block = malloc(i % 5000 + 1);
        block[0] = (char)i;
        sum = sum * 0.5 + 1;
        if (sum > 2) fail("sum");
        free(block);
    }
    return unused;
}
int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "many")) {
        void *(*bodies[])(void *) = {polls, sleeps, allocates};
        for (int i = 0; i < 3; i++) {
            pthread_t thread;
            pthread_create(&thread, NULL, bodies[i], NULL);
        }
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        if (argc > 1 && !strcmp(argv[1], "sleep")) {
            struct pollfd input = {0, POLLIN, 0};
            int readable = poll(&input, 1, 0);
            struct timespec limit = {0, 50000000};
            if (!readable && nanosleep(&limit, NULL)) fail("nanosleep");
            if (!readable) continue;
        }
        char line[64];
        ssize_t got = read(0, line, sizeof line);
        if (got < 0) fail("read");
        if (got == 0) return 0;
        printf("served\n");
        fflush(stdout);
    }
}
