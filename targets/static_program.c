// Linked statically (or against musl): nothing can be preloaded into it. It must run as ever.
#include "common.h"

int main(void) {
    char line[100];
    keep(malloc(100));
    ssize_t length = read(0, line, sizeof line);
    say("read %zd bytes\n", length);
    return 13;
}
