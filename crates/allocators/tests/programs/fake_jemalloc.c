/* What another allocator looks like from outside: it defines malloc and its own control function. */
#include <stddef.h>
extern void *__libc_malloc(size_t);
void *malloc(size_t size) { return __libc_malloc(size); }
int mallctl(const char *name, void *old, size_t *length, void *new, size_t size) { return 0; }
