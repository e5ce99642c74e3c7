// Built with optimization: the function that loses the memory is inlined into one that is inlined into one that is not.
#include "common.h"
#include <vector>

static inline __attribute__((always_inline)) char *innermost(size_t size) {
    return static_cast<char *>(keep(malloc(size))); // LEAK bytes=55 blocks=1
}

static inline __attribute__((always_inline)) char *middle(size_t size) { return innermost(size + 5); }

__attribute__((noinline)) static int outermost(size_t size) {
    char *block = middle(size);
    block[0] = 1;
    return block[0];
}

__attribute__((noinline)) static void grow() {
    auto *numbers = new std::vector<int>; // LEAK bytes=24 blocks=1
    for (int i = 0; i < 1000; i++) numbers->push_back(i); // LEAK bytes=4096 blocks=1 allocated=8188/11
    keep(numbers);
}

int main() {
    check(outermost(50) == 1);
    grow();
    say("inlined\n");
    return 0;
}
