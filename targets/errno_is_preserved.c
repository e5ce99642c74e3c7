// Calls that succeed leave errno alone; calls that fail set it as libc does.
#include "common.h"
#include <malloc.h>
#include <stdint.h>
#include <sys/mman.h>

static volatile size_t impossible = PTRDIFF_MAX;

int main(void) {
    for (int i = 0; i < 20000; i++) {
        errno = 1234;
        void *block = keep(malloc(16 + i % 5000)); // FREED bytes=50310000 blocks=20000
        check(errno == 1234);
        block = keep(realloc(block, 100 + i % 77)); // FREED bytes=2759430 blocks=20000
        check(errno == 1234);
        free(block);
        check(errno == 1234);
    }
    errno = 4321;
    void *block = keep(calloc(3, 5)); // LEAK bytes=15 blocks=1
    check(errno == 4321);
    check(posix_memalign(&block, 64, 64) == 0 && errno == 4321); // LEAK bytes=64 blocks=1
    check(malloc(impossible) == NULL && errno == ENOMEM);
    errno = 0;
    check(calloc(impossible, 16) == NULL && errno == ENOMEM);
    errno = 0;
    check(memalign(64, impossible) == NULL && errno == ENOMEM);
    errno = 0;
    check(mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == EINVAL);
    errno = 0;
    check(munmap((void *)1, 10) == -1 && errno == EINVAL);
    errno = 0;
    free(NULL);
    check(errno == 0);
    say("errno kept\n");
    return 0;
}
