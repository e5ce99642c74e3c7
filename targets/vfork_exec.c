// A child of vfork, or of clone with CLONE_VM, shares the parent's memory: what it allocates is the parent's, and its end or
// its exec must not end the parent's profile.
#include "common.h"
#include <sched.h>
#include <sys/wait.h>

extern char **environ;

static int shares_memory(void *unused) {
    (void)unused;
    keep(malloc(64)); // LEAK bytes=64 blocks=1
    free(keep(malloc(65))); // FREED bytes=65 blocks=1
    _exit(5);
}

static void wait_for(pid_t child, int expected) {
    int status;
    check(waitpid(child, &status, 0) == child);
    check(WIFEXITED(status) && WEXITSTATUS(status) == expected);
}

int main(int argc, char **argv) {
    if (argc > 1) {
        keep(malloc(11)); // LEAK bytes=11 blocks=1 in=child
        return 9;
    }
    keep(malloc(1000)); // LEAK bytes=1000 blocks=1
    for (int i = 0; i < 10; i++) {
        char *arguments[] = {argv[0], "child", NULL};
        pid_t child = vfork();
        if (child == 0) {
            execve("/proc/self/exe", arguments, environ);
            _exit(126);
        }
        wait_for(child, 9);
    }
    pid_t child = vfork();
    if (child == 0) {
        char *nothing[] = {"nothing", NULL};
        execve("/nonexistent/program", nothing, environ);
        _exit(127);
    }
    wait_for(child, 127);

    char *stack = malloc(256 * 1024); // FREED bytes=262144 blocks=1
    child = clone(shares_memory, stack + 256 * 1024, CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);
    wait_for(child, 5);
    free(stack);
    for (int i = 0; i < 5; i++) keep(malloc(2000)); // LEAK bytes=10000 blocks=5
    say("vforked\n");
    return 0;
}
