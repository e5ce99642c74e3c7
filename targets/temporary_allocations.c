// Blocks freed by their own thread before it allocates again are temporary; others are not, however short their life.
#include "common.h"

int main(void) {
    for (int i = 0; i < 500; i++) free(keep(malloc(48))); // FREED bytes=24000 blocks=500 temporary=500
    for (int i = 0; i < 300; i++) {
        void *first = keep(malloc(60)); // FREED bytes=18000 blocks=300 temporary=0
        void *second = keep(malloc(70)); // FREED bytes=21000 blocks=300 temporary=300
        free(second);
        free(first);
    }
    void *blocks[10];
    for (int i = 0; i < 10; i++) blocks[i] = keep(malloc(80)); // FREED bytes=800 blocks=10 temporary=1
    for (int i = 0; i < 10; i++) free(blocks[i]);
    keep(malloc(90)); // LEAK bytes=90 blocks=1 temporary=0
    say("temporary\n");
    return 0;
}
