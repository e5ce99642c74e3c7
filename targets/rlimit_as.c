// The address space is limited: "now" by the program for itself, "before" for a program that it then becomes by exec.
#include "common.h"
#include <sys/resource.h>

int main(int argc, char **argv) {
    check(argc == 2);
    if (strcmp(argv[1], "after") != 0) {
        struct rlimit limit = {400 << 20, 400 << 20};
        check(setrlimit(RLIMIT_AS, &limit) == 0);
    }
    if (strcmp(argv[1], "before") == 0) {
        execl("/proc/self/exe", argv[0], "after", (char *)NULL);
        _exit(126);
    }
    // 300 of the 400 MiB are the program's right, with or without a tracer.
    static void *blocks[300];
    if (strcmp(argv[1], "after") == 0) {
        for (int i = 0; i < 300; i++) {
            blocks[i] = keep(malloc(1 << 20)); // FREED
            check(blocks[i] != NULL);
        }
        for (int i = 0; i < 300; i++) free(blocks[i]);
    }
    check(malloc(500 << 20) == NULL && errno == ENOMEM);
    static void *small[200000];
    for (int i = 0; i < 200000; i++) check((small[i] = keep(malloc(20))) != NULL); // FREED
    for (int i = 0; i < 200000; i++) free(small[i]);
    keep(malloc(99)); // LEAK bytes=99 blocks=1
    say("limited\n");
    return 0;
}
