// Memory is allocated before main, and before the constructors of the libraries: in the executable's preinit array.
#include "common.h"

static void *early;

static void preinit(int argc, char **argv, char **environment) {
    (void)argc, (void)argv, (void)environment;
    early = keep(malloc(301)); // FREED bytes=301 blocks=1
    keep(malloc(302)); // LEAK bytes=302 blocks=1
}
__attribute__((section(".preinit_array"), used)) static void (*preinit_entry)(int, char **, char **) = preinit;

__attribute__((constructor(101))) static void constructor(void) {
    early = keep(realloc(early, 40000)); // FREED bytes=40000 blocks=1
    keep(calloc(1, 303)); // LEAK bytes=303 blocks=1
}

int main(void) {
    free(early);
    keep(malloc(304)); // LEAK bytes=304 blocks=1
    say("early\n");
    return 0;
}
