// Waits for a line, then ends in the way that the argument names.
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile uint64_t mark;
static volatile sig_atomic_t handled;
static const char *way;

static void on_signal(int signal) { (void)signal; handled++; }
static void *idle(void *unused) {
    for (;;) pause();
    return unused;
}
static void *brief(void *unused) { return unused; }
static void *last(void *unused) {
    usleep(20000);
    mark = 0x600d;
    return unused;
}

int main(int argc, char **argv) {
    way = argc > 1 ? argv[1] : "";
    signal(SIGUSR1, on_signal);
    pthread_t threads[3];
    if (strcmp(way, "leader")) for (int i = 0; i < 3; i++) pthread_create(&threads[i], NULL, idle, NULL);
    printf("ready\n");
    fflush(stdout);
    char line[64];
    if (!fgets(line, sizeof line, stdin)) return 99;
    printf("%lu %d\n", (unsigned long)&mark, (int)getpid());
    fflush(stdout);
    // Threads that come and go meanwhile, and signals, take their course.
    for (int i = 0; i < 20; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, brief, NULL);
        pthread_join(thread, NULL);
        kill(getpid(), SIGUSR1);
    }
    mark = 0x600d;
    if (!handled) return 98;
    if (!strcmp(way, "return")) return 7;
    if (!strcmp(way, "_exit")) _exit(8);
    if (!strcmp(way, "abort")) abort();
    if (!strcmp(way, "term")) kill(getpid(), SIGTERM);
    if (!strcmp(way, "exec")) execl("/bin/sh", "sh", "-c", "exit 9", (char *)NULL);
    if (!strcmp(way, "leader")) {
        mark = 0;
        pthread_t thread;
        pthread_create(&thread, NULL, last, NULL);
        pthread_exit(NULL);
    }
    pause();
    return 97;
}
