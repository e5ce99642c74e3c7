// A sandbox kills the process at its first forbidden system call. "filter" allows what an allocator needs, "strict" is the
// kernel's strict mode: read, write, exit and sigreturn, nothing else.
#include "common.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define ALLOW(name)                                              \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_##name, 0, 1),      \
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static void filter(void) {
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        ALLOW(read), ALLOW(write), ALLOW(exit), ALLOW(exit_group), ALLOW(rt_sigreturn),
        ALLOW(brk), ALLOW(mmap), ALLOW(munmap), ALLOW(mremap), ALLOW(mprotect), ALLOW(madvise), ALLOW(futex),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog program = {sizeof rules / sizeof *rules, rules};
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

int main(int argc, char **argv) {
    check(argc == 2);
    int strict = strcmp(argv[1], "strict") == 0;
    // The main arena keeps what it has, so that the strict mode needs no brk.
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    mallopt(M_MMAP_THRESHOLD, 1 << 28);
    free(keep(malloc(32 << 20))); // FREED bytes=33554432 blocks=1
    keep(malloc(10)); // LEAK bytes=10 blocks=1
    if (strict)
        check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0);
    else
        filter();
    static void *blocks[60000];
    for (int i = 0; i < 60000; i++) blocks[i] = keep(malloc(16 + i % 50)); // FREED bytes=2430000 blocks=60000
    for (int i = 0; i < 60000; i++) free(blocks[i]);
    for (int i = 0; i < 1000; i++) keep(malloc(30)); // LEAK bytes=30000 blocks=1000
    say("sandboxed\n");
    if (strict) syscall(SYS_exit, 0);
    return 0;
}
