// C23's free_sized and free_aligned_sized, where libc (or a preload) has them.
#include "common.h"
#include <dlfcn.h>

int main(void) {
    void (*free_sized)(void *, size_t) = (void (*)(void *, size_t))dlsym(RTLD_DEFAULT, "free_sized");
    void (*free_aligned_sized)(void *, size_t, size_t) =
        (void (*)(void *, size_t, size_t))dlsym(RTLD_DEFAULT, "free_aligned_sized");
    for (int i = 0; i < 10; i++) {
        void *block = keep(malloc(100)); // FREED bytes=1000 blocks=10
        void *aligned = keep(aligned_alloc(64, 128)); // FREED bytes=1280 blocks=10
        if (free_sized) free_sized(block, 100); else free(block);
        if (free_aligned_sized) free_aligned_sized(aligned, 64, 128); else free(aligned);
    }
    if (free_sized) free_sized(NULL, 0);
    if (free_aligned_sized) free_aligned_sized(NULL, 64, 0);
    keep(malloc(101)); // LEAK bytes=101 blocks=1
    say("sized\n");
    return 0;
}
