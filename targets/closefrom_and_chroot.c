// A service closes every descriptor it does not know and locks itself into an empty directory; then its heap grows.
#include "common.h"
#include <fcntl.h>

int main(int argc, char **argv) {
    check(argc == 2);
    keep(malloc(10)); // LEAK bytes=10 blocks=1
    closefrom(3);
    if (geteuid() == 0) {
        check(chroot(argv[1]) == 0);
        check(chdir("/") == 0);
    }
    void **blocks = malloc(200000 * sizeof *blocks); // FREED bytes=1600000 blocks=1
    for (int i = 0; i < 200000; i++) blocks[i] = keep(malloc(16 + i % 50)); // FREED bytes=8100000 blocks=200000
    for (int i = 0; i < 200000; i++) free(blocks[i]);
    free(blocks);
    for (int i = 0; i < 100; i++) keep(malloc(20)); // LEAK bytes=2000 blocks=100
    check(open("/etc/passwd", 0) == -1 || geteuid() != 0);
    say("locked in\n");
    return 0;
}
