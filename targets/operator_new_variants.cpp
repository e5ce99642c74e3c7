// Each form of operator new and delete. They reach malloc, and each block counts once.
#include "common.h"
#include <cstddef>
#include <cstdint>
#include <new>

struct Plain {
    char bytes[40];
};
struct alignas(128) Wide {
    char bytes[256];
};
struct WithDestructor {
    ~WithDestructor() {}
    char bytes[8];
};
struct OwnOperator {
    char bytes[70];
    static void *operator new(size_t size) { return keep(malloc(size + 10)); } // LEAK bytes=80 blocks=1 allocated=160/2
    static void operator delete(void *block) { free(block); }
};

int main() {
    keep(new Plain); // LEAK bytes=40 blocks=1
    keep(new Plain[5]); // LEAK bytes=200 blocks=1
    keep(new (std::nothrow) Plain); // LEAK bytes=40 blocks=1
    keep(new Wide); // LEAK bytes=256 blocks=1
    keep(new Wide[2]); // LEAK bytes=512 blocks=1
    keep(new (std::nothrow) Wide); // LEAK bytes=256 blocks=1
    keep(new WithDestructor[4]); // LEAK bytes=40 blocks=1
    keep(new OwnOperator);
    delete static_cast<OwnOperator *>(keep(new OwnOperator));
    keep(::operator new(33)); // LEAK bytes=33 blocks=1
    keep(::operator new(0)); // LEAK bytes=1 blocks=1

    for (int i = 0; i < 100; i++) {
        delete static_cast<Plain *>(keep(new Plain)); // FREED bytes=4000 blocks=100
        delete[] static_cast<Plain *>(keep(new Plain[3])); // FREED bytes=12000 blocks=100
        delete static_cast<Wide *>(keep(new Wide)); // FREED bytes=25600 blocks=100
        ::operator delete(keep(::operator new(50)), static_cast<size_t>(50)); // FREED bytes=5000 blocks=100
        ::operator delete(keep(::operator new(64, std::align_val_t(64))), std::align_val_t(64)); // FREED bytes=6400 blocks=100
    }
    alignas(Plain) char place[sizeof(Plain)];
    keep(new (place) Plain);

    volatile size_t impossible = PTRDIFF_MAX;
    check(new (std::nothrow) char[impossible] == nullptr);
    bool thrown = false;
    try {
        keep(new char[impossible]); // LIBC
    } catch (const std::bad_alloc &) {
        thrown = true;
    }
    check(thrown);
    say("new and delete\n");
    return 0;
}
