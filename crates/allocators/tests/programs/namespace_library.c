/* Allocates by the C library of whatever namespace it is loaded into. */
#include <malloc.h>
#include <stdlib.h>

void *get(size_t size) { return malloc(size); }
void put(void *block) { free(block); }
size_t usable(void *block) { return malloc_usable_size(block); }
