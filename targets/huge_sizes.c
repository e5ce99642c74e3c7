// Blocks beyond 4 GiB, untouched, and sizes that no allocator can give. A machine may refuse; then it refuses traced as well.
#include "common.h"
#include <stdint.h>

static volatile size_t impossible = SIZE_MAX;

int main(void) {
    check(malloc(impossible) == NULL);
    check(calloc(impossible / 2, 3) == NULL);
    check(aligned_alloc(64, impossible - 100) == NULL);
    char *huge = keep(malloc((size_t)5 << 30)); // LEAK bytes=5368709120 blocks=1
    if (huge == NULL) {
        say("refused\n");
        return 1;
    }
    huge[0] = huge[((size_t)5 << 30) - 1] = 1;
    char *larger = keep(malloc((size_t)4 << 30)); // FREED bytes=4294967296 blocks=1
    larger = keep(realloc(larger, ((size_t)4 << 30) + 12345)); // LEAK bytes=4294979641 blocks=1
    check(larger != NULL);
    free(keep(calloc((size_t)1 << 20, 6000))); // FREED bytes=6291456000 blocks=1
    say("huge\n");
    return 0;
}
