// One process, three programs after one another by exec, the last without arguments of the first: each has its own heap.
#include "common.h"

int main(int argc, char **argv) {
    if (argc == 1) {
        keep(malloc(100)); // LEAK bytes=100 blocks=1 in=first
        execl("/proc/self/exe", argv[0], "second", (char *)NULL);
    } else if (argc == 2) {
        keep(malloc(200)); // LEAK bytes=200 blocks=1 in=second
        char *arguments[] = {argv[0], "third", "x", NULL};
        execv("/proc/self/exe", arguments);
    } else {
        keep(malloc(300)); // LEAK bytes=300 blocks=1 in=third
        say("third program\n");
        return 17;
    }
    return 1;
}
