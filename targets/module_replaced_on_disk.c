// A library is replaced on disk while it is in use, as a package upgrade does. Its allocations must not be given the names of
// whatever lies at the same offsets of the new file.
#include "common.h"
#include <dlfcn.h>

int main(int argc, char **argv) {
    check(argc == 3);
    void *library = dlopen(argv[1], RTLD_NOW); // LIBC
    check(library != NULL);
    void (*lose)(void) = (void (*)(void))dlsym(library, "lose");
    check(lose != NULL);
    lose(); // LEAK bytes=24 blocks=1
    check(rename(argv[2], argv[1]) == 0);
    say("replaced\n");
    return 0;
}
