// Files may not grow beyond one block, and SIGXFSZ would kill: the program's heap grows all the same.
#include "common.h"
#include <sys/resource.h>

int main(void) {
    struct rlimit limit = {4096, 4096};
    check(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    static void *blocks[200000];
    for (int i = 0; i < 200000; i++) blocks[i] = keep(malloc(20)); // FREED
    for (int i = 0; i < 200000; i++) free(blocks[i]);
    keep(malloc(99)); // LEAK bytes=99 blocks=1
    say("limited\n");
    return 0;
}
