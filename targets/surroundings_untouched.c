// Prints what a process inherits and what could be disturbed: signals, limits, threads, timers, directory, umask, groups.
#include "common.h"
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>

int main(int argc, char **argv) {
    for (int i = 0; i < argc; i++) say("argument %s\n", i ? argv[i] : "0");
    sigset_t mask;
    check(sigprocmask(SIG_BLOCK, NULL, &mask) == 0);
    for (int i = 1; i < NSIG; i++) {
        struct sigaction action;
        if (sigaction(i, NULL, &action) != 0) continue;
        say("signal %d %s%s\n", i,
            action.sa_handler == SIG_DFL ? "default" : action.sa_handler == SIG_IGN ? "ignored" : "handled",
            sigismember(&mask, i) ? " blocked" : "");
    }
    for (int i = 0; i < RLIMIT_NLIMITS; i++) {
        struct rlimit limit;
        check(getrlimit(i, &limit) == 0);
        say("limit %d %llu %llu\n", i, (unsigned long long)limit.rlim_cur, (unsigned long long)limit.rlim_max);
    }
    struct stat status;
    check(stat("/proc/self/task", &status) == 0);
    say("threads %d\n", (int)status.st_nlink - 2);
    mode_t old = umask(0);
    char directory[4096];
    check(getcwd(directory, sizeof directory) != NULL);
    say("umask %o, directory %s\n", old, directory);
    for (int i = 0; i < 3; i++) {
        struct itimerval timer;
        check(getitimer(i, &timer) == 0);
        say("timer %d %ld\n", i, timer.it_value.tv_sec);
    }
    int death = -1;
    prctl(PR_GET_PDEATHSIG, &death);
    say("parent death signal %d, dumpable %d, no new privileges %d\n", death, prctl(PR_GET_DUMPABLE),
        prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    say("seccomp %d, nice %d, scheduler %d, oom %d\n", prctl(PR_GET_SECCOMP), getpriority(PRIO_PROCESS, 0),
        sched_getscheduler(0), access("/proc/self/oom_score_adj", R_OK));
    say("uid %d %d gid %d %d\n", getuid(), geteuid(), getgid(), getegid());
    say("leader %d, group's session %d\n", getpgrp() == getpid(), getsid(0) == getpgrp());
    return 0;
}
