// A forked child frees 400 of its parent's 1,000 blocks, most of them after it has used their addresses again itself.
#include "common.h"
#include <sys/wait.h>

enum { BLOCKS = 1000, FREED = 400 };

static void *blocks[BLOCKS];

int main(void) {
    for (int i = 0; i < BLOCKS; i++) blocks[i] = keep(malloc(100)); // LEAK bytes=100000 blocks=1000
    pid_t child = fork();
    check(child >= 0);
    if (child == 0) {
        for (int i = 0; i < FREED; i++) free(blocks[i]);
        for (int turn = 0; turn < 10; turn++) {
            void *own[FREED];
            for (int i = 0; i < FREED; i++) own[i] = keep(malloc(100)); // FREED in=child bytes=400000 blocks=4000
            for (int i = 0; i < FREED; i++) free(own[i]);
        }
        keep(malloc(100)); // LEAK in=child bytes=100 blocks=1
        _exit(0);
    }
    int status;
    check(waitpid(child, &status, 0) == child && status == 0);
    say("done\n");
    return 0;
}
