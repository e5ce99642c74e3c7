// The program replaces operator new and delete for every library, on top of malloc, with a header before each block.
#include "common.h"
#include <new>
#include <string>

static size_t calls;

void *operator new(size_t size) {
    calls++;
    char *block = static_cast<char *>(malloc(size + 16)); // LEAK bytes=132 blocks=2 allocated=348/3
    if (!block) throw std::bad_alloc();
    return block + 16;
}
void operator delete(void *block) noexcept {
    if (block) free(static_cast<char *>(block) - 16);
}
void operator delete(void *block, size_t) noexcept { operator delete(block); }

int main() {
    keep(new char);
    keep(operator new(99));
    {
        std::string text(199, 'x');
        keep(&text);
    }
    check(calls == 3);
    say("replaced\n");
    return 0;
}
