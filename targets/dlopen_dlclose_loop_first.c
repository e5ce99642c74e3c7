// One of the two libraries of dlopen_dlclose_loop.
#include "common.h"

static void *block;
__attribute__((constructor)) static void begin(void) { block = keep(malloc(1000)); } // FREED bytes=50000 blocks=50
__attribute__((destructor)) static void end(void) { free(block); }

void lose(void) {
    keep(malloc(24)); // LEAK bytes=1200 blocks=50
}
