// The heap climbs to a peak of two sites' making, falls, and climbs again, though not so high.
#include "common.h"

enum { BLOCKS = 20000 };
static void *first[BLOCKS], *second[BLOCKS];

int main(void) {
    for (int i = 0; i < BLOCKS; i++) first[i] = keep(malloc(1000)); // FREED bytes=20000000 blocks=20000 peak=20000000
    for (int i = 0; i < BLOCKS; i++) second[i] = keep(malloc(500)); // FREED bytes=10000000 blocks=20000 peak=10000000
    for (int i = 0; i < BLOCKS; i++) free(first[i]);
    for (int i = 0; i < BLOCKS; i++) free(second[i]);
    for (int i = 0; i < BLOCKS; i++) first[i] = keep(malloc(700)); // FREED bytes=14000000 blocks=20000 peak=0
    for (int i = 0; i < BLOCKS; i++) free(first[i]);
    say("peaked\n");
    return 0;
}
