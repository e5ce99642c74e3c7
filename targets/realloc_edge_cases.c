// realloc in all its forms. A block belongs to the call that last gave it its size; a failed call changes nothing.
#include "common.h"
#include <stdint.h>

static volatile size_t impossible = PTRDIFF_MAX;

int main(void) {
    char *from_null = realloc(NULL, 10); // LEAK bytes=10 blocks=1
    keep(from_null);

    char *freed = malloc(20); // FREED bytes=20 blocks=1
    check(realloc(keep(freed), 0) == NULL);

    char *kept = malloc(30); // LEAK bytes=30 blocks=1
    strcpy(kept, "still here");
    errno = 0;
    check(realloc(keep(kept), impossible) == NULL);
    check(errno == ENOMEM && strcmp(kept, "still here") == 0);
    check(reallocarray(kept, impossible, 3) == NULL);
    check(errno == ENOMEM && strcmp(kept, "still here") == 0);

    char *grown = malloc(40); // FREED bytes=40 blocks=1
    strcpy(grown, "moved along");
    grown = keep(realloc(keep(grown), 100000)); // FREED bytes=100000 blocks=1
    check(strcmp(grown, "moved along") == 0);
    grown = keep(realloc(grown, 5000000)); // LEAK bytes=5000000 blocks=1
    check(strcmp(grown, "moved along") == 0);

    char *shrunk = malloc(3000); // FREED bytes=3000 blocks=1
    shrunk = keep(realloc(keep(shrunk), 50)); // LEAK bytes=50 blocks=1

    char *same = malloc(64); // FREED bytes=64 blocks=1
    same = keep(realloc(keep(same), 64)); // LEAK bytes=64 blocks=1

    char *array = reallocarray(NULL, 7, 11); // FREED bytes=77 blocks=1
    array = keep(reallocarray(keep(array), 100, 11)); // LEAK bytes=1100 blocks=1

    char *buffer = NULL;
    for (size_t size = 1; size <= 4096; size *= 2) {
        buffer = keep(realloc(buffer, size)); // LEAK bytes=4096 blocks=1 allocated=8191/13
        buffer[size - 1] = 'x';
    }
    say("done\n");
    return 0;
}
