// Each way to ask for aligned memory, also with what libc accepts though the standard does not.
#include "common.h"
#include <malloc.h>
#include <stdint.h>

#define aligned_to(pointer, alignment) (((uintptr_t)(pointer) & ((alignment) - 1)) == 0)

int main(void) {
    void *block = NULL;
    check(posix_memalign(&block, 64, 100) == 0 && aligned_to(block, 64)); // LEAK bytes=100 blocks=1
    keep(block);
    check(posix_memalign(&block, 4096, 10) == 0 && aligned_to(block, 4096)); // FREED bytes=10 blocks=1
    free(keep(block));

    void *untouched = (void *)0x1234;
    errno = 0;
    check(posix_memalign(&untouched, 3, 10) == EINVAL && untouched == (void *)0x1234);
    check(posix_memalign(&untouched, 64, (size_t)PTRDIFF_MAX) == ENOMEM && untouched == (void *)0x1234);

    block = keep(aligned_alloc(128, 256)); // LEAK bytes=256 blocks=1
    check(aligned_to(block, 128));
    block = keep(aligned_alloc(32, 33)); // LEAK bytes=33 blocks=1
    check(aligned_to(block, 32));
    block = keep(memalign(1024, 7)); // LEAK bytes=7 blocks=1
    check(aligned_to(block, 1024));
    block = keep(memalign(1000, 8)); // LEAK bytes=8 blocks=1
    check(aligned_to(block, 1024));
    block = keep(valloc(300)); // LEAK bytes=300 blocks=1
    check(aligned_to(block, 4096));
    block = keep(pvalloc(400)); // LEAK bytes=400 blocks=1
    check(aligned_to(block, 4096) && malloc_usable_size(block) >= 4096);

    for (int i = 0; i < 100; i++) {
        block = keep(memalign(64, 100 + i)); // FREED bytes=14950 blocks=100
        block = keep(realloc(block, 2000)); // FREED bytes=200000 blocks=100
        free(block);
        free(keep(valloc(10))); // FREED bytes=1000 blocks=100
        free(keep(pvalloc(10))); // FREED bytes=1000 blocks=100
    }
    say("aligned\n");
    return 0;
}
