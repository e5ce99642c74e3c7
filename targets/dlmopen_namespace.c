// A library in a linker namespace of its own has a C library of its own there, which no preload reaches. It calls back into
// the program, which allocates.
#include "common.h"
#include <dlfcn.h>

static void call_back(void) {
    keep(malloc(61)); // LEAK bytes=1220 blocks=20
    free(keep(malloc(62))); // FREED bytes=1240 blocks=20
}

int main(int argc, char **argv) {
    check(argc == 2);
    void *library = dlmopen(LM_ID_NEWLM, argv[1], RTLD_NOW); // LIBC
    check(library != NULL);
    void (*use)(void (*)(void)) = (void (*)(void (*)(void)))dlsym(library, "use"); // LIBC
    check(use != NULL);
    for (int i = 0; i < 20; i++) use(call_back);
    check(dlclose(library) == 0); // LIBC
    say("another namespace\n");
    return 0;
}
