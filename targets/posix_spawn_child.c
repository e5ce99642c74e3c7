// A child is started by posix_spawn, which shares the parent's memory until the exec.
#include "common.h"
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

int main(int argc, char **argv) {
    if (argc > 1) {
        for (int i = 0; i < 3; i++) keep(malloc(500)); // LEAK bytes=1500 blocks=3 in=child
        say("child\n");
        return 6;
    }
    for (int i = 0; i < 5; i++) {
        keep(malloc(17)); // LEAK bytes=85 blocks=5
        char *arguments[] = {argv[0], "child", NULL};
        pid_t child;
        check(posix_spawn(&child, "/proc/self/exe", NULL, NULL, arguments, environ) == 0);
        int status;
        check(waitpid(child, &status, 0) == child);
        check(WIFEXITED(status) && WEXITSTATUS(status) == 6);
    }
    pid_t child;
    char *nothing[] = {"nothing", NULL};
    check(posix_spawn(&child, "/nonexistent/program", NULL, NULL, nothing, environ) == ENOENT);
    say("parent\n");
    return 0;
}
