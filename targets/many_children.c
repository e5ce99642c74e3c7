// As many children as the argument says; every hundredth loses memory, the others end with nothing unfreed.
#include "common.h"
#include <sys/wait.h>

int main(int argc, char **argv) {
    check(argc == 2);
    int children = atoi(argv[1]);
    for (int i = 0; i < children; i++) {
        pid_t child = fork();
        check(child >= 0);
        if (child == 0) {
            free(keep(malloc(100))); // FREED in=child
            if (i % 100 == 0) keep(malloc(5000)); // LEAK bytes=5000 blocks=1 in=child
            _exit(0);
        }
        int status;
        check(waitpid(child, &status, 0) == child && status == 0);
    }
    say("%d children\n", children);
    return 0;
}
