// A recursion of the depth given as argument, with a loss at its bottom.
#include "common.h"

KEEP_CALL int descend(int depth) {
    if (depth == 0) {
        keep(malloc(64)); // LEAK bytes=64 blocks=1
        return 1;
    }
    int below = descend(depth - 1);
    return below + (keep(&below) != NULL);
}

int main(int argc, char **argv) {
    check(argc == 2);
    check(descend(atoi(argv[1])) == atoi(argv[1]) + 1);
    say("deep\n");
    return 0;
}
