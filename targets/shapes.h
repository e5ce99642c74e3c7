// Shared by the programs of leak shapes: one program holds many, `argv[1]` chooses one, `list` names them all. Several are built
// each in a forked child, whose pid and shape are printed: memcheck starts up only once for them.
//
// What nobody means to keep must be nowhere. So shapes are built by functions of their own that return nothing, and
// afterwards dead stack slots and registers are cleared; blocks are zeroed, for memcheck does not look at what was never written.
#pragma once
#include "common.h"
#include <pthread.h>
#include <stdint.h>
#include <sys/wait.h>

#ifdef __cplusplus
extern "C" {
#endif

struct shape {
    const char *name;
    void (*build)(void);
};

// Clears the stack below the caller and the registers that a callee may change, vector registers too. Those that it may not
// change belong to callers, and these hold nothing.
__attribute__((noinline, noclone, unused)) static void clear_traces(void) {
    char dead[65536];
    memset(dead, 0, sizeof dead);
    keep(dead);
    if (__builtin_cpu_supports("avx512f")) {
        __asm__ volatile(
            ".irp n,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n\t"
            "vpxorq %%zmm\\n, %%zmm\\n, %%zmm\\n\n\t"
            ".endr" ::: "memory");
    }
    if (__builtin_cpu_supports("avx")) {
        __asm__ volatile("vzeroall" ::: "memory");
    } else {
        __asm__ volatile(
            ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n\t"
            "pxor %%xmm\\n, %%xmm\\n\n\t"
            ".endr" ::: "memory");
    }
    __asm__ volatile("xor %%eax, %%eax\n\t"
                     "xor %%ecx, %%ecx\n\t"
                     "xor %%edx, %%edx\n\t"
                     "xor %%esi, %%esi\n\t"
                     "xor %%edi, %%edi\n\t"
                     "xor %%r8d, %%r8d\n\t"
                     "xor %%r9d, %%r9d\n\t"
                     "xor %%r10d, %%r10d\n\t"
                     "xor %%r11d, %%r11d"
                     :
                     :
                     : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory");
}

// A new block, cleared.
__attribute__((unused)) static inline __attribute__((always_inline)) void *zeroed(void *block, size_t size) {
    check(block != NULL);
    return keep(memset(block, 0, size));
}
#define SHAPE(function) {#function, function}
// A macro, so that the allocation belongs to the line that asks for it.
#define BLOCK(bytes)                                                           \
    ({                                                                         \
        size_t bytes_ = (bytes);                                               \
        zeroed(malloc(bytes_), bytes_);                                        \
    })

// Ends the program here, with all that is on the stack now.
__attribute__((noinline, noclone, noreturn, unused)) static void end_here(void) {
    clear_traces();
    exit(0);
}

// Threads that stay: the main thread goes on once the other has nothing more to do but rest.
static volatile int resting;

__attribute__((noinline, noclone, unused)) static void rest(void) {
    clear_traces();
    __atomic_store_n(&resting, 1, __ATOMIC_SEQ_CST);
    for (;;) pause();
}

__attribute__((noinline, noclone, unused)) static void start_and_await_rest(void *(*run)(void *)) {
    pthread_t thread;
    check(pthread_create(&thread, NULL, run, NULL) == 0); // the loader's and libc's own
    while (!__atomic_load_n(&resting, __ATOMIC_SEQ_CST)) usleep(500);
}

__attribute__((noinline, noclone, unused)) static void start_and_join(void *(*run)(void *)) {
    pthread_t thread;
    check(pthread_create(&thread, NULL, run, NULL) == 0);
    check(pthread_join(thread, NULL) == 0);
}

// The whole main program.
__attribute__((unused)) static int run_shape(const struct shape *shapes, size_t count, int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "list") == 0) {
        for (size_t i = 0; i < count; i++) say("%s\n", shapes[i].name);
        return 0;
    }
    const char *chosen = argc == 2 ? argv[1] : NULL;
    for (int next = 1; argc > 2 && next < argc && chosen == NULL; next++) {
        int status;
        pid_t child = fork();
        if (child == 0) {
            chosen = argv[next];
            continue;
        }
        say("%d %s\n", child, argv[next]);
        check(waitpid(child, &status, 0) == child && status == 0);
    }
    if (argc > 2 && chosen == NULL) return 0;
    for (size_t i = 0; chosen != NULL && i < count; i++) {
        if (strcmp(chosen, shapes[i].name) == 0) {
            shapes[i].build();
            clear_traces();
            return 0;
        }
    }
    say("usage: %s list | SHAPE...\n", argv[0]);
    return 2;
}

#ifdef __cplusplus
}
#endif
