// A program starts another one with an environment of its own making, in which nobody's LD_PRELOAD is.
#include "common.h"

extern char **environ;

int main(int argc, char **argv) {
    if (argc > 1) {
        check(getenv("HOME") == NULL && strcmp(getenv("ONLY"), "this") == 0);
        keep(malloc(222)); // LEAK bytes=222 blocks=1 in=after
        say("after exec\n");
        return 4;
    }
    keep(malloc(111)); // LEAK bytes=111 blocks=1 in=before
    char *arguments[] = {argv[0], "again", NULL};
    char *environment[] = {"ONLY=this", NULL};
    execve("/proc/self/exe", arguments, environment);
    return 1;
}
