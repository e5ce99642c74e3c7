// Blocks of no bytes are blocks all the same.
#include "common.h"

int main(void) {
    for (int i = 0; i < 10; i++) {
        check(keep(malloc(0)) != NULL); // LEAK bytes=0 blocks=10
        check(keep(calloc(0, 8)) != NULL); // LEAK bytes=0 blocks=10
        check(keep(realloc(NULL, 0)) != NULL); // LEAK bytes=0 blocks=10
        free(keep(malloc(0))); // FREED bytes=0 blocks=10
    }
    check(keep(aligned_alloc(16, 0)) != NULL); // LEAK bytes=0 blocks=1
    say("nothing\n");
    return 0;
}
