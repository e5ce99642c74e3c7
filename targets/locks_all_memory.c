// A service with real-time needs locks all of its memory, present and future. That must not mean the tracer's reserve, which
// would then be populated to its full size.
#include "common.h"
#include <sys/mman.h>

static long resident_pages(void) {
    char text[200];
    FILE *file = fopen("/proc/self/statm", "r"); // FREED
    check(file != NULL && fgets(text, sizeof text, file) != NULL); // FREED
    fclose(file);
    long size, resident;
    check(sscanf(text, "%ld %ld", &size, &resident) == 2);
    return resident;
}

int main(void) {
    keep(malloc(40)); // LEAK bytes=40 blocks=1
    long before = resident_pages();
    if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0) {
        say("not allowed\n");
        return 1;
    }
    for (int i = 0; i < 1000; i++) keep(malloc(50)); // LEAK bytes=50000 blocks=1000
    long grown = (resident_pages() - before) / 256;
    say("grown by %s\n", grown < 50 ? "less than 50 MiB" : "much");
    check(munlockall() == 0);
    for (int i = 0; i < 100000; i++) keep(malloc(50)); // LEAK bytes=5000000 blocks=100000
    return 0;
}
