// A user's preload: it replaces getppid, and allocates in its constructor and destructor.
#include "common.h"

pid_t getppid(void) { return 4242; }

static void *block;

__attribute__((constructor)) static void begin(void) { block = keep(malloc(333)); } // LIBC

__attribute__((destructor)) static void end(void) { free(block); }
