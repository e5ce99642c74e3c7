// A library loaded with RTLD_DEEPBIND calls libc's allocator past every preload. Its blocks are freed here, unseen ones; and it
// frees blocks of ours unseen, whose addresses then come back from malloc.
#include "common.h"
#include <dlfcn.h>

int main(int argc, char **argv) {
    check(argc == 2);
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_DEEPBIND); // LIBC
    check(library != NULL);
    void *(*make)(size_t) = (void *(*)(size_t))dlsym(library, "make");
    void (*destroy)(void *) = (void (*)(void *))dlsym(library, "destroy");
    check(make && destroy);
    for (int i = 0; i < 100; i++) {
        char *theirs = make(100 + i);
        memset(theirs, 1, 100 + i);
        if (i % 2)
            free(theirs);
        else
            free(keep(realloc(theirs, 5000))); // FREED bytes=250000 blocks=50
    }
    void *ours = keep(malloc(200)); // FREED bytes=200 blocks=1
    destroy(ours);
    void *again = keep(malloc(200)); // LEAK bytes=200 blocks=1
    check(again == ours);
    say("bound deeply\n");
    return 0;
}
