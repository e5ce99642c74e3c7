// The user's own LD_PRELOAD entry works, is still listed after exec, and still works there.
#include "common.h"

int main(int argc, char **argv) {
    const char *preload = getenv("LD_PRELOAD");
    check(preload != NULL && strstr(preload, "exec_keeps_user_preload_library") != NULL);
    check(getppid() == 4242);
    if (argc > 1) {
        keep(malloc(222)); // LEAK bytes=222 blocks=1 in=after
        say("after exec\n");
        return 3;
    }
    keep(malloc(111)); // LEAK bytes=111 blocks=1 in=before
    say("before exec\n");
    execl("/proc/self/exe", argv[0], "again", (char *)NULL);
    return 1;
}
