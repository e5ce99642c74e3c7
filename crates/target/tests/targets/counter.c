// A thread counts in memory as fast as it can; the main thread answers requests for the addresses.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <errno.h>
#include <signal.h>

static volatile uint64_t pair[2];
static volatile sig_atomic_t children;

static void on_child(int signal) { (void)signal; children++; }

static void *count(void *unused) {
    (void)unused;
    for (;;) {
        pair[0]++;
        __asm__ volatile("" ::: "memory");
        pair[1]++;
    }
    return NULL;
}

int main(int argc, char **argv) {
    struct sigaction action = {.sa_handler = on_child};
    sigaction(SIGCHLD, &action, NULL);
    size_t mib = argc > 1 ? strtoul(argv[1], NULL, 10) : 1;
    char *heap = malloc(mib << 20);
    memset(heap, 1, mib << 20);
    pthread_t thread;
    pthread_create(&thread, NULL, count, NULL);
    puts("ready");
    fflush(stdout);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        if (!strncmp(line, "where", 5)) printf("%lu\n", (unsigned long)pair);
        else if (!strncmp(line, "value", 5)) printf("%lu\n", (unsigned long)pair[0]);
        else if (!strncmp(line, "children", 8)) {
            int result = waitpid(-1, NULL, WNOHANG);
            printf("%d %d %d\n", (int)children, result, result == -1 ? errno : 0);
        }
        fflush(stdout);
    }
    return 0;
}
