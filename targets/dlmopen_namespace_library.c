// The library that dlmopen_namespace loads.
#include "common.h"

void use(void (*function)(void)) {
    void *block = keep(malloc(100)); // LIBC
    function();
    free(block);
}
