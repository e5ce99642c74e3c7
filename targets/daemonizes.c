// A service forks twice and goes on in the background after its first process has ended. It reports by the file given.
#include "common.h"
#include <fcntl.h>
#include <sys/wait.h>

int main(int argc, char **argv) {
    check(argc == 3);
    keep(malloc(50)); // LEAK bytes=50 blocks=1
    pid_t child = fork();
    check(child >= 0);
    if (child > 0) {
        check(waitpid(child, NULL, 0) == child);
        say("started\n");
        return 0;
    }
    setsid();
    child = fork();
    check(child >= 0);
    if (child > 0) _exit(0);
    int silence = open("/dev/null", O_RDWR);
    dup2(silence, 0), dup2(silence, 1), dup2(silence, 2);
    closefrom(3);
    // The rest waits for the word that leakscope has ended: a byte in the fifo.
    int go = open(argv[1], O_RDONLY);
    char byte;
    check(read(go, &byte, 1) == 1);
    for (int i = 0; i < 30000; i++) keep(malloc(25)); // LEAK bytes=750000 blocks=30000 in=daemon
    char text[32];
    int done = open(argv[2], O_WRONLY);
    int length = snprintf(text, sizeof text, "%d\n", getpid());
    check(write(done, text, length) == length);
    return 0;
}
