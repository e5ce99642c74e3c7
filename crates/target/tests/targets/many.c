// many N: N threads that wait. many churn: threads that come and go. many descriptors: a socket pair and a lock.
// many dontfork: memory that is not to be copied. many headless: the first thread ends, another one answers.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static volatile int failures;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t never = PTHREAD_COND_INITIALIZER;
static volatile uint64_t mark = 0x600d;
static char *uncopied;
static int pair[2], file = -1;
static char path[] = "/tmp/leakscope-many-XXXXXX";

static void *waits(void *unused) {
    pthread_setname_np(pthread_self(), "worker");
    pthread_mutex_lock(&mutex);
    for (;;) pthread_cond_wait(&never, &mutex);
    return unused;
}
static void *brief(void *number) { return (char *)number + 1; }
static void *churns(void *unused) {
    for (intptr_t i = 0;; i++) {
        pthread_t thread;
        void *result;
        if (pthread_create(&thread, NULL, brief, (void *)i)) failures++;
        else if (pthread_join(thread, &result) || result != (void *)(i + 1)) failures++;
    }
    return unused;
}

static void *answers(void *unused) {
    puts("ready");
    fflush(stdout);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        if (!strncmp(line, "where", 5)) printf("%lu\n", uncopied ? (unsigned long)uncopied : (unsigned long)&mark);
        else if (!strncmp(line, "close", 5)) {
            close(pair[1]);
            char byte;
            ssize_t got = recv(pair[0], &byte, 1, MSG_DONTWAIT);
            close(file);
            int again = open(path, O_RDWR);
            int locked = flock(again, LOCK_EX | LOCK_NB);
            unlink(path);
            printf("%zd %s %d %s\n", got, got ? strerror(errno) : "closed", locked, locked ? strerror(errno) : "locked");
        } else printf("%d\n", failures);
        fflush(stdout);
    }
    exit(0);
    return unused;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "0";
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 128 << 10);
    pthread_t thread;
    for (int i = atoi(what); i > 0; i--)
        if (pthread_create(&thread, &small, waits, NULL)) failures++;
    if (!strcmp(what, "churn"))
        for (int i = 0; i < 4; i++) pthread_create(&thread, &small, churns, NULL);
    if (!strcmp(what, "descriptors")) {
        socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
        file = mkstemp(path);
        flock(file, LOCK_EX);
    }
    if (!strcmp(what, "dontfork")) {
        char *pages = mmap(NULL, 5 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        uncopied = pages + 4096;
        mprotect(uncopied, 2 * 4096, PROT_READ | PROT_WRITE);
        memset(uncopied, 0x77, 2 * 4096);
        madvise(uncopied, 2 * 4096, MADV_DONTFORK);
    }
    if (!strcmp(what, "huge")) {
        size_t size = 128ul << 20, page = 2ul << 20;
        char *block = aligned_alloc(page, size);
        madvise(block, size, MADV_HUGEPAGE);
        memset(block, 1, size);
    }
    if (!strcmp(what, "headless")) {
        pthread_create(&thread, NULL, answers, NULL);
        pthread_exit(NULL);
    }
    answers(NULL);
}
