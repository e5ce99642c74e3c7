// Every way for a process to end. What was lost before is reported, and the status is the program's own.
#include "common.h"
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>

static const char *variant;

static void *exits_in_thread(void *unused) {
    (void)unused;
    keep(malloc(60)); // LIBC
    exit(24);
}

static void *outlives_main(void *unused) {
    (void)unused;
    usleep(20000);
    return NULL;
}

static int is(const char *name) { return strcmp(variant, name) == 0; }

int main(int argc, char **argv) {
    check(argc == 2);
    variant = argv[1];
    struct rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    for (int i = 0; i < 3; i++) keep(malloc(1000)); // LEAK bytes=3000 blocks=3
    free(keep(malloc(10))); // FREED bytes=10 blocks=1
    say("%s\n", variant);
    pthread_t id;
    if (is("return")) return 20;
    if (is("exit")) exit(21);
    if (is("_exit")) _exit(22);
    if (is("_Exit")) _Exit(23);
    if (is("quick_exit")) quick_exit(25);
    if (is("exit_group")) syscall(SYS_exit_group, 26);
    if (is("abort")) abort();
    if (is("sigsegv")) *(volatile int *)16 = 1;
    if (is("sigkill")) kill(getpid(), SIGKILL);
    if (is("sigterm")) raise(SIGTERM);
    if (is("thread_exit")) {
        check(pthread_create(&id, NULL, exits_in_thread, NULL) == 0); // LIBC
        pthread_join(id, NULL);
    }
    if (is("main_ends_first")) {
        check(pthread_create(&id, NULL, outlives_main, NULL) == 0); // LIBC
        pthread_exit(NULL); // LIBC
    }
    return 1;
}
