// Signals arrive at any instant of a malloc storm, and their handler maps and unmaps memory, which is safe in a handler; so a
// hook is entered while another is half done. Signals that the program raises itself find a handler that uses malloc.
#include "common.h"
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>

static volatile sig_atomic_t ticks;

static void on_tick(int number) {
    (void)number;
    int saved = errno;
    void *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); // MAPPED bytes=409600 blocks=50
    if (page == MAP_FAILED) _exit(97);
    *(char *)page = 1;
    if (ticks >= 50) munmap(page, 8192);
    ticks++;
    errno = saved;
}

static void on_request(int number) {
    (void)number;
    keep(malloc(80)); // LEAK bytes=8000 blocks=100
    free(keep(malloc(81))); // FREED bytes=8100 blocks=100
}

int main(void) {
    struct sigaction action = {.sa_handler = on_tick, .sa_flags = SA_RESTART};
    check(sigaction(SIGALRM, &action, NULL) == 0);
    action.sa_handler = on_request;
    check(sigaction(SIGUSR1, &action, NULL) == 0);
    struct itimerval interval = {{0, 300}, {0, 300}};
    check(setitimer(ITIMER_REAL, &interval, NULL) == 0);

    void *blocks[256] = {0};
    for (unsigned i = 0; ticks < 200; i++) {
        unsigned slot = i * 2654435761u >> 24;
        free(blocks[slot]);
        blocks[slot] = keep(malloc(16 + i % 700)); // FREED
    }
    struct itimerval none = {{0, 0}, {0, 0}};
    check(setitimer(ITIMER_REAL, &none, NULL) == 0);
    for (int i = 0; i < 256; i++) free(blocks[i]);

    for (int i = 0; i < 100; i++) raise(SIGUSR1);
    keep(malloc(90)); // LEAK bytes=90 blocks=1
    say("signalled\n");
    return 0;
}
