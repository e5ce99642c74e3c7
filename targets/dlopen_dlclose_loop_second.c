// The other library of dlopen_dlclose_loop: the same layout, other lines.
#include "common.h"

// (room, so that a line of the one library is never a marked line of the other)


static void *other_block;
__attribute__((constructor)) static void begin(void) { other_block = keep(malloc(1100)); } // FREED bytes=55000 blocks=50
__attribute__((destructor)) static void end(void) { free(other_block); }

void lose(void) {
    keep(malloc(41)); // LEAK bytes=2050 blocks=50
}
