// Runs a command under a seccomp filter.
//
//     confined untraceable COMMAND...   nobody in there may trace or read another process: EPERM
//     confined uncopyable COMMAND...    a process that makes another one by `clone` or `fork` is killed (threads use `clone3`)
#include "common.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define ON(name, action)                                    \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_##name, 0, 1), \
    BPF_STMT(BPF_RET | BPF_K, action)

enum { DENY = SECCOMP_RET_ERRNO | EPERM, KILL = SECCOMP_RET_KILL_PROCESS };

int main(int argc, char **argv) {
    check(argc > 2);
    struct sock_filter untraceable[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        ON(ptrace, DENY), ON(process_vm_readv, DENY), ON(process_vm_writev, DENY),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_filter uncopyable[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        ON(clone, KILL), ON(fork, KILL), ON(vfork, KILL),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof untraceable / sizeof *untraceable, untraceable};
    if (strcmp(argv[1], "uncopyable") == 0) program.filter = uncopyable;
    check(sizeof untraceable == sizeof uncopyable);
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
    execvp(argv[2], argv + 2);
    return 127;
}
