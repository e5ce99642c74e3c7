// malloc_usable_size accepts NULL, and all that it promises can be written.
#include "common.h"
#include <malloc.h>

int main(void) {
    check(malloc_usable_size(NULL) == 0);
    free(NULL);
    for (size_t size = 1; size < 3000; size += 13) {
        char *block = malloc(size); // FREED bytes=345576 blocks=231
        size_t usable = malloc_usable_size(keep(block));
        check(usable >= size);
        memset(block, 0xa5, usable);
        free(block);
    }
    char *block = keep(malloc(30)); // LEAK bytes=30 blocks=1
    memset(block, 0x5a, malloc_usable_size(block));
    say("usable size of 30 is %zu\n", malloc_usable_size(block));
    return 0;
}
