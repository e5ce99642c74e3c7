// Prints each signal it gets, and ends at SIGTERM with status 9. SIGWINCH and the like are printed too.
#include "common.h"
#include <signal.h>

static void on_signal(int number) { (void)number; }

int main(void) {
    sigset_t all;
    sigfillset(&all);
    check(sigprocmask(SIG_BLOCK, &all, NULL) == 0);
    struct sigaction action = {.sa_handler = on_signal};
    for (int i = 1; i < 32; i++)
        if (i != SIGKILL && i != SIGSTOP) check(sigaction(i, &action, NULL) == 0);
    say("ready\n");
    for (;;) {
        keep(malloc(8)); // LEAK
        int number = sigwaitinfo(&all, NULL);
        if (number < 0) continue;
        say("signal %d\n", number);
        if (number == SIGTERM) return 9;
    }
}
