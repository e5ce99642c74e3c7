// Ways for a process to end beyond exit_variants.c: with handlers, from handlers, with children of each kind. Each process
// that ends with memory of its own is examined once, and neither its status nor its output changes.
#include "common.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

static const char *variant;
static void *freed_at_exit;

static int is(const char *name) { return strcmp(variant, name) == 0; }

static void first_handler(void) { say("first registered\n"); }

static void frees(void) {
    free(freed_at_exit);
    say("handler\n");
}

static void ends_again(void) { _exit(42); }

static void exits_again(void) { exit(43); }

static void on_signal(int number) {
    (void)number;
    exit(44);
}

static void on_alarm(int number) { (void)number; }

static void *ends_process(void *barrier) {
    pthread_barrier_wait(barrier);
    _exit(45);
}

// A child that a block of its own is lost in.
static int child_of(int (*kind)(void)) {
    int status;
    pid_t child = kind();
    check(child > 0 && waitpid(child, &status, 0) == child);
    check(WIFEXITED(status));
    // Nobody else's child has come to this process, not even for a moment.
    check(waitpid(-1, NULL, 0) == -1 && errno == ECHILD);
    return WEXITSTATUS(status);
}

static int forks_and_exits(void) {
    pid_t child = fork();
    if (child == 0) {
        keep(malloc(700));
        exit(5);
    }
    return child;
}

static int forks_and_ends(void) {
    pid_t child = fork();
    if (child == 0) {
        keep(malloc(700));
        _exit(6);
    }
    return child;
}

static int forks_in_vain(void) {
    pid_t child = fork();
    if (child == 0) _exit(7);
    return child;
}

static int clones_past_libc(void) {
    pid_t child = syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, 0UL);
    if (child == 0) {
        keep(malloc(700));
        _exit(8);
    }
    return child;
}

static int vforks(void) {
    pid_t child = vfork();
    if (child == 0) _exit(9);
    return child;
}

// The child of a child that never allocated has its memory only for a moment.
static int vforks_in_a_fork(void) {
    pid_t child = fork();
    if (child == 0) {
        int status;
        pid_t grandchild = vfork();
        if (grandchild == 0) _exit(10);
        check(waitpid(grandchild, &status, 0) == grandchild);
        _exit(WEXITSTATUS(status));
    }
    return child;
}

#define DENY(name)                                               \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_##name, 0, 1),      \
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM)

// As a container's rules do, and as quietly.
static void deny_copies(void) {
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        DENY(clone), DENY(process_vm_readv), DENY(ptrace),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof rules / sizeof *rules, rules};
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    check(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0);
}

int main(int argc, char **argv) {
    check(argc == 2);
    variant = argv[1];
    keep(malloc(1234));
    freed_at_exit = keep(malloc(4321));
    say("%s\n", variant);
    if (is("atexit")) {
        atexit(first_handler);
        atexit(frees);
        return 30;
    }
    if (is("at_quick_exit")) {
        at_quick_exit(first_handler);
        at_quick_exit(frees);
        quick_exit(31);
    }
    if (is("handler_ends")) {
        atexit(ends_again);
        return 32;
    }
    if (is("handler_exits")) {
        atexit(exits_again);
        return 32;
    }
    if (is("signal_handler")) {
        signal(SIGUSR1, on_signal);
        raise(SIGUSR1);
    }
    if (is("signals")) {
        struct sigaction action = {.sa_handler = on_alarm};
        struct itimerval timer = {{0, 500}, {0, 500}};
        check(sigaction(SIGALRM, &action, NULL) == 0);
        check(setitimer(ITIMER_REAL, &timer, NULL) == 0);
        return 33;
    }
    if (is("threads")) {
        pthread_barrier_t barrier;
        pthread_t id;
        pthread_barrier_init(&barrier, NULL, 4);
        for (int i = 0; i < 3; i++) check(pthread_create(&id, NULL, ends_process, &barrier) == 0);
        ends_process(&barrier);
    }
    if (is("exiting_thread")) {
        pthread_barrier_t barrier;
        pthread_t id;
        pthread_barrier_init(&barrier, NULL, 1);
        check(pthread_create(&id, NULL, ends_process, &barrier) == 0);
        for (;;) pause();
    }
    if (is("exec")) {
        char *arguments[] = {argv[0], "return", NULL};
        execv("/proc/self/exe", arguments);
    }
    if (is("fork_exit")) return child_of(forks_and_exits);
    if (is("fork__exit")) return child_of(forks_and_ends);
    if (is("fork_in_vain")) return child_of(forks_in_vain);
    if (is("clone")) return child_of(clones_past_libc);
    if (is("vfork")) return child_of(vforks);
    if (is("vfork_in_fork")) return child_of(vforks_in_a_fork);
    if (is("many")) {
        for (int i = 0; i < 20; i++) check(forks_and_exits() > 0);
        for (int i = 0; i < 20; i++) {
            int status;
            check(wait(&status) > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 5);
        }
        return 34;
    }
    if (is("denied")) deny_copies();
    if (is("marked") || is("denied")) {
        // What the examination is to find: a pattern, and the only pointer to it.
        static unsigned char *block;
        block = malloc(54321);
        for (int i = 0; i < 54321; i++) block[i] = i % 251;
        keep(block);
        check(malloc(3 << 20) != NULL);
        return 35;
    }
    return 36;
}
