// Exceptions thrown through many frames, also from inside callbacks of libc: the C++ runtime unwinds the same stack as the
// tracer, and allocates for each exception.
#include "common.h"
#include <exception>
#include <stdexcept>
#include <string>

KEEP_CALL void throw_from_below(int depth, int what) {
    if (depth > 0) {
        throw_from_below(depth - 1, what);
        keep(&depth);
        return;
    }
    keep(malloc(21)); // LEAK bytes=21000 blocks=1000
    if (what % 2) throw what;
    throw std::runtime_error("a message too long for the small string optimization"); // LIBC
}

KEEP_CALL int compare(const void *, const void *) {
    keep(malloc(5)); // LEAK bytes=50 blocks=10
    throw 1;
}

static std::exception_ptr kept;

int main() {
    int caught = 0;
    for (int i = 0; i < 1000; i++) {
        try {
            throw_from_below(20, i);
        } catch (int value) {
            caught += value % 2;
        } catch (const std::exception &error) {
            caught += strlen(error.what()) > 20;
        }
    }
    check(caught == 1000);
    for (int i = 0; i < 10; i++) {
        int values[] = {2, 1};
        try {
            qsort(values, 2, sizeof *values, compare);
            check(false);
        } catch (int) {
        }
    }
    try {
        throw std::string(100, 'k'); // LIBC
    } catch (...) {
        kept = std::current_exception();
    }
    say("caught\n");
    return 0;
}
