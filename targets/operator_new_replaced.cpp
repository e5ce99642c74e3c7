// The program replaces operator new and delete for every library, on top of malloc, with a header before each block.
#include "common.h"
#include <new>
#include <string>

static size_t calls;

void *operator new(size_t size) {
    calls++;
    // operator new is the allocator's, even the program's own: a block belongs to whoever called it.
    char *block = static_cast<char *>(malloc(size + 16));
    if (!block) throw std::bad_alloc();
    return block + 16;
}
void operator delete(void *block) noexcept {
    if (block) free(static_cast<char *>(block) - 16);
}
void operator delete(void *block, size_t) noexcept { operator delete(block); }

int main() {
    keep(new char); // LEAK bytes=17 blocks=1
    keep(operator new(99)); // LEAK bytes=115 blocks=1
    {
        std::string text(199, 'x'); // FREED bytes=216 blocks=1
        keep(&text);
    }
    check(calls == 3);
    say("replaced\n");
    return 0;
}
