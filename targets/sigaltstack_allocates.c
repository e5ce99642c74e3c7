// A handler on an alternate signal stack allocates; its stack continues, through the signal frame, in the interrupted code.
#include "common.h"
#include <signal.h>

static void on_signal(int number) {
    (void)number;
    char array[1000];
    keep(array);
    keep(malloc(56)); // LEAK bytes=560 blocks=10
    free(keep(malloc(5600))); // FREED bytes=56000 blocks=10
}

KEEP_CALL void interrupted(void) {
    raise(SIGUSR1);
    keep(NULL);
}

int main(void) {
    stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536}; // LEAK bytes=65536 blocks=1
    check(sigaltstack(&stack, NULL) == 0);
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
    check(sigaction(SIGUSR1, &action, NULL) == 0);
    for (int i = 0; i < 10; i++) interrupted();
    say("handled\n");
    return 0;
}
