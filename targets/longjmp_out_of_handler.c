// A handler jumps out of whatever was running, which here are system calls for memory: a hook that never returns must leave
// nothing held.
#include "common.h"
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>

static sigjmp_buf back;
static volatile sig_atomic_t jumps, armed;

static void on_tick(int number) {
    (void)number;
    if (!armed) return;
    armed = 0;
    jumps++;
    siglongjmp(back, 1);
}

int main(void) {
    struct sigaction action = {.sa_handler = on_tick};
    check(sigaction(SIGALRM, &action, NULL) == 0);
    struct itimerval interval = {{0, 300}, {0, 300}};
    check(setitimer(ITIMER_REAL, &interval, NULL) == 0);
    while (jumps < 200) {
        if (sigsetjmp(back, 1)) {
            keep(malloc(48)); // LEAK bytes=9600 blocks=200
            free(keep(malloc(49))); // FREED bytes=9800 blocks=200
            continue;
        }
        armed = 1;
        for (;;) {
            void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); // LIBC
            munmap(page, 4096);
        }
    }
    struct itimerval none = {{0, 0}, {0, 0}};
    check(setitimer(ITIMER_REAL, &none, NULL) == 0);
    void *page = mmap(NULL, 12288, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); // MAPPED bytes=12288 blocks=1
    check(page != MAP_FAILED);
    for (int i = 0; i < 1000; i++) free(keep(malloc(100 + i))); // FREED bytes=599500 blocks=1000
    keep(malloc(50)); // LEAK bytes=50 blocks=1
    say("jumped 200 times\n");
    return 0;
}
