// Children made past libc's fork, so that no atfork handler runs: by the system call, and by _Fork.
#include "common.h"
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static void be_the_child(void *inherited) {
    free(inherited);
    for (int i = 0; i < 100; i++) keep(malloc(45)); // LEAK bytes=4500 blocks=100 in=child
    free(keep(malloc(46))); // FREED bytes=46 blocks=1 in=child
    _exit(3);
}

static void wait_for(pid_t child) {
    int status;
    check(waitpid(child, &status, 0) == child);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 3);
}

int main(void) {
    void *inherited = keep(malloc(600)); // LEAK bytes=600 blocks=1
    for (int i = 0; i < 10; i++) {
        pid_t child = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
        check(child >= 0);
        if (child == 0) be_the_child(inherited);
        wait_for(child);
        child = _Fork();
        check(child >= 0);
        if (child == 0) be_the_child(inherited);
        wait_for(child);
        keep(malloc(47)); // LEAK bytes=470 blocks=10
    }
    say("cloned\n");
    return 0;
}
