// Spins with known values in all registers and checks that they stay; between two spins it answers requests.
// The values: general registers 0x1111111100000000 + n; vector register n holds bytes n + 1, except for a word of 0x5a.
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined(__AVX512F__)
enum { COUNT = 32, SIZE = 64 };
#define LOAD(n) "vmovdqu64 " #n "*64(%[from]), %%zmm" #n "\n"
#define STORE(n) "vmovdqu64 %%zmm" #n ", " #n "*64(%[to])\n"
#define MORE(X) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23) X(24) X(25) X(26) X(27) X(28) X(29) X(30) X(31)
#define CLOBBER "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", \
    "xmm27", "xmm28", "xmm29", "xmm30", "xmm31",
#elif defined(__AVX__)
enum { COUNT = 16, SIZE = 32 };
#define LOAD(n) "vmovdqu " #n "*32(%[from]), %%ymm" #n "\n"
#define STORE(n) "vmovdqu %%ymm" #n ", " #n "*32(%[to])\n"
#define MORE(X)
#define CLOBBER
#else
enum { COUNT = 16, SIZE = 16 };
#define LOAD(n) "movdqu " #n "*16(%[from]), %%xmm" #n "\n"
#define STORE(n) "movdqu %%xmm" #n ", " #n "*16(%[to])\n"
#define MORE(X)
#define CLOBBER
#endif
#define ALL(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15) MORE(X)

static unsigned char from[COUNT][SIZE], to[COUNT][SIZE];

int main(void) {
    for (int n = 0; n < COUNT; n++) {
        memset(from[n], n + 1, SIZE);
        // The last word of each, which only the widest part of the register holds.
        memset(from[n] + SIZE - 8, 0x5a, 7);
    }
    puts("ready");
    fflush(stdout);
    unsigned long spins = 0;
    for (;;) {
        unsigned long bad = 0;
        // The x87 stack, the direction flag and the carry must stay, too.
        __asm__ volatile(
            ALL(LOAD)
            "fldpi\n"
            "movabs $0x1111111100000001, %%r8\n movabs $0x1111111100000002, %%r9\n"
            "movabs $0x1111111100000003, %%r10\n movabs $0x1111111100000004, %%r11\n"
            "movabs $0x1111111100000005, %%r12\n movabs $0x1111111100000006, %%r13\n"
            "movabs $0x1111111100000007, %%rcx\n movabs $0x1111111100000008, %%rdx\n"
            "movabs $0x1111111100000009, %%rax\n"
            "movq %%rax, -8(%%rsp)\n movq %%rax, -120(%%rsp)\n" // the red zone
            "mov $20000000, %%r15\n"
            "1: dec %%r15\n jnz 1b\n"
            "mov $1, %[bad]\n"
            "cmp %%rax, -8(%%rsp)\n jne 2f\n cmp %%rax, -120(%%rsp)\n jne 2f\n"
            "movabs $0x1111111100000009, %%r15\n cmp %%r15, %%rax\n jne 2f\n"
            "dec %%r15\n cmp %%r15, %%rdx\n jne 2f\n dec %%r15\n cmp %%r15, %%rcx\n jne 2f\n"
            "dec %%r15\n cmp %%r15, %%r13\n jne 2f\n dec %%r15\n cmp %%r15, %%r12\n jne 2f\n"
            "dec %%r15\n cmp %%r15, %%r11\n jne 2f\n dec %%r15\n cmp %%r15, %%r10\n jne 2f\n"
            "dec %%r15\n cmp %%r15, %%r9\n jne 2f\n dec %%r15\n cmp %%r15, %%r8\n jne 2f\n"
            "mov $0, %[bad]\n"
            "2:\n" ALL(STORE)
            "fldpi\n fcomip %%st(1), %%st\n jne 3f\n jnp 4f\n 3: mov $2, %[bad]\n 4: fstp %%st(0)\n"
            : [bad] "=&b"(bad)
            : [from] "S"(from), [to] "D"(to)
            : "memory", "cc", "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r15", CLOBBER "xmm0",
              "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",
              "xmm13", "xmm14", "xmm15");
        if (bad || memcmp(from, to, sizeof from)) {
            printf("bad %lu %d\n", bad, memcmp(from, to, sizeof from));
            fflush(stdout);
            abort();
        }
        spins++;
        struct pollfd input = {0, POLLIN, 0};
        if (poll(&input, 1, 0) == 1) {
            char line[64];
            ssize_t got = read(0, line, sizeof line);
            if (got <= 0) return 0;
            printf("%lu\n", spins);
            fflush(stdout);
        }
    }
}
