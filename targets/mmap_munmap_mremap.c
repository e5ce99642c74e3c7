// Anonymous mappings that the program makes itself, unmapped whole, in part, and several at once. Those of files do not count.
#include "common.h"
#include <fcntl.h>
#include <sys/mman.h>

int main(void) {
    size_t page = 4096;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;

    char *whole = mmap(NULL, 8 * page, PROT_READ, flags, -1, 0); // FREED bytes=32768 blocks=1 mapped
    check(munmap(whole, 8 * page) == 0);

    char *kept = mmap(NULL, 3 * page, PROT_READ, flags, -1, 0); // MAPPED bytes=12288 blocks=1
    keep(kept);

    char *head = mmap(NULL, 8 * page, PROT_READ, flags, -1, 0); // MAPPED bytes=24576 blocks=1
    check(munmap(head, 2 * page) == 0);

    char *tail = mmap(NULL, 8 * page, PROT_READ, flags, -1, 0); // MAPPED bytes=20480 blocks=1
    check(munmap(tail + 5 * page, 3 * page) == 0);

    char *middle = mmap(NULL, 8 * page, PROT_READ, flags, -1, 0); // MAPPED bytes=28672 blocks=any
    check(munmap(middle + 3 * page, page) == 0);

    char *pieces = mmap(NULL, 8 * page, PROT_READ, flags, -1, 0); // FREED bytes=32768 blocks=1 mapped
    for (int i = 0; i < 8; i++) check(munmap(pieces + i * page, page) == 0);

    char *both = mmap(NULL, 20 * page, PROT_READ, flags, -1, 0); // MAPPED bytes=8192 blocks=any
    char *over = mmap(both + 4 * page, 4 * page, PROT_READ, flags | MAP_FIXED, -1, 0); // FREED bytes=16384 blocks=1 mapped
    check(over == both + 4 * page);
    check(munmap(both + 2 * page, 18 * page) == 0);

    char *moved = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, flags, -1, 0); // FREED bytes=8192 blocks=1 mapped
    moved[0] = 'm';
    moved = mremap(moved, 2 * page, 600 * page, MREMAP_MAYMOVE); // MAPPED bytes=2457600 blocks=1
    check(moved != MAP_FAILED && moved[0] == 'm');
    errno = 0;
    check(mremap(moved, 600 * page, (size_t)1 << 46, MREMAP_MAYMOVE) == MAP_FAILED && errno == ENOMEM);

    errno = 0;
    check(munmap(moved, (size_t)-4096) == -1 && errno == EINVAL);
    check(mmap(moved, (size_t)-4096, PROT_READ, flags, -1, 0) == MAP_FAILED);

    int file = open("/proc/self/exe", O_RDONLY);
    check(mmap(NULL, page, PROT_READ, MAP_PRIVATE, file, 0) != MAP_FAILED);
    close(file);
    check(mmap(NULL, 2 * page, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0) != MAP_FAILED); // MAPPED bytes=8192 blocks=1

    keep(malloc(1000000)); // LEAK bytes=1000000 blocks=1
    say("mapped\n");
    return 0;
}
