/* measured COMMAND...: runs it, and then prints a line `result wall_ns=... cpu_ns=... peak_kib=...` for `cargo xtask bench`.
 *
 * The peak of resident memory is the kernel's own figure, of the command and those of its children that it waited for,
 * whichever is largest; a process's figure begins with that of the one that started it, so this one is small. Status 1 is not a
 * failure (it is what leakscope says of leaks); all others are passed on.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint64_t nanoseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t of(struct timeval t) { return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_usec * 1000u; }

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    uint64_t began = nanoseconds();
    pid_t child = fork();
    if (child == 0) {
        execvp(argv[1], argv + 1);
        perror(argv[1]);
        _exit(127);
    }
    int status;
    struct rusage usage;
    if (child < 0 || wait4(child, &status, 0, &usage) != child) {
        perror("measured");
        return 1;
    }
    uint64_t wall = nanoseconds() - began;
    printf("\nresult wall_ns=%lu cpu_ns=%lu peak_kib=%ld\n", wall, of(usage.ru_utime) + of(usage.ru_stime), usage.ru_maxrss);
    if (WIFSIGNALED(status)) return 128 + WTERMSIG(status);
    return WEXITSTATUS(status) == 1 ? 0 : WEXITSTATUS(status);
}
