// A service started by root becomes an ordinary user; then its heap grows.
#include "common.h"
#include <grp.h>

int main(void) {
    keep(malloc(10)); // LEAK bytes=10 blocks=1
    if (geteuid() == 0) {
        check(setgroups(0, NULL) == 0);
        check(setresgid(65534, 65534, 65534) == 0);
        check(setresuid(65534, 65534, 65534) == 0);
    }
    void **blocks = malloc(100000 * sizeof *blocks); // FREED bytes=800000 blocks=1
    for (int i = 0; i < 100000; i++) blocks[i] = keep(malloc(16 + i % 50)); // FREED bytes=4050000 blocks=100000
    for (int i = 0; i < 100000; i++) free(blocks[i]);
    free(blocks);
    for (int i = 0; i < 100; i++) keep(malloc(20)); // LEAK bytes=2000 blocks=100
    say("unprivileged\n");
    return 0;
}
