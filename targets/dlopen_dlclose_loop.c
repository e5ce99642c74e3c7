// Two libraries are loaded and unloaded in turn, mostly at the same addresses. Each loses memory under its own name.
#include "common.h"
#include <dlfcn.h>

static void visit(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL); // LIBC
    check(library != NULL);
    void (*lose)(void) = (void (*)(void))dlsym(library, "lose"); // LIBC
    check(lose != NULL);
    lose();
    check(dlclose(library) == 0); // LIBC
}

int main(int argc, char **argv) {
    check(argc == 3);
    for (int i = 0; i < 50; i++) {
        visit(argv[1]);
        visit(argv[2]);
    }
    say("50 rounds\n");
    return 0;
}
