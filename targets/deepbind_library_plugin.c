// The library that deepbind_library loads.
#include "common.h"

void *make(size_t size) { return malloc(size); } // LIBC

void destroy(void *block) { free(block); }
