// Enters the memory cgroup whose list of processes is the first argument, then allocates and touches memory until it is killed,
// with the account of counted_churn's kind (blocks begun, blocks done) in the file of the second.
#include "common.h"
#include <fcntl.h>
#include <sys/mman.h>

int main(int argc, char **argv) {
    check(argc == 3);
    if (argv[1][0]) {
        int group = open(argv[1], O_WRONLY);
        check(group >= 0);
        char text[32];
        int length = snprintf(text, sizeof text, "%d", getpid());
        check(write(group, text, length) == length);
        close(group);
    }
    int file = open(argv[2], O_RDWR | O_CREAT, 0600);
    check(file >= 0 && ftruncate(file, 4096) == 0);
    volatile unsigned long *account = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    check(account != MAP_FAILED);
    close(file);
    account[0] = account[1] = 0;
    for (;;) {
        account[0]++;
        char *block = keep(malloc(10000)); // SITE 0
        account[1]++;
        if (block == NULL) return 1;
        memset(block, 1, 10000);
        free(keep(malloc(100)));
    }
}
