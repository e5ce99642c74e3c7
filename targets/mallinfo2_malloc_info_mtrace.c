// A program that measures its own heap, as those do which once used glibc's malloc hooks. It must see the same figures.
#include "common.h"
#include <malloc.h>
#include <mcheck.h>

int main(void) {
    mtrace();
    keep(malloc(10)); // LEAK bytes=10 blocks=1
    struct mallinfo2 before = mallinfo2();
    void *blocks[100];
    for (int i = 0; i < 100; i++) blocks[i] = keep(malloc(1000)); // FREED bytes=100000 blocks=100
    struct mallinfo2 full = mallinfo2();
    for (int i = 0; i < 100; i++) free(blocks[i]);
    struct mallinfo2 after = mallinfo2();
    say("in use +%zd, then -%zd\n", full.uordblks - before.uordblks, full.uordblks - after.uordblks);
    keep(malloc(300000)); // LEAK bytes=300000 blocks=1
    struct mallinfo2 large = mallinfo2();
    say("%zu mapped block of %zu bytes\n", large.hblks, large.hblkhd);

    char text[20000];
    FILE *stream = fmemopen(text, sizeof text, "w"); // LIBC
    check(stream != NULL);
    check(malloc_info(0, stream) == 0); // LIBC
    check(fclose(stream) == 0);
    check(strncmp(text, "<malloc version=\"1\">", 20) == 0);
    check(mallopt(M_ARENA_MAX, 2) == 1);
    check(malloc_trim(0) == 0 || 1);
    muntrace();
    return 0;
}
