// Memory is freed, and lost, after main: by atexit functions and by destructors.
#include "common.h"

static void *in_atexit, *in_destructor;

static void at_exit(void) {
    free(in_atexit);
    keep(malloc(71)); // LEAK bytes=71 blocks=1
}

__attribute__((destructor(101))) static void last_destructor(void) {
    free(in_destructor);
    keep(malloc(72)); // LEAK bytes=72 blocks=1
    say("last\n");
}

int main(void) {
    check(atexit(at_exit) == 0);
    in_atexit = keep(malloc(1000)); // FREED bytes=1000 blocks=1
    in_destructor = keep(malloc(2000)); // FREED bytes=2000 blocks=1
    keep(malloc(73)); // LEAK bytes=73 blocks=1
    return 0;
}
