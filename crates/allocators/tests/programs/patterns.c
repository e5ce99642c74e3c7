/* Allocates and frees in every way that glibc keeps memory in, over several threads, and says what is live.
   It takes no memory for its own account: the table is static. */
#include <malloc.h>
#include <sys/mman.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <stdint.h>

#define MOST (1 << 20)
static struct entry { void *block; const char *what; } table[MOST];
static size_t used;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *keep(void *block, const char *what)
{
    if (!block) { fprintf(stderr, "no memory for %s\n", what); exit(1); }
    pthread_mutex_lock(&lock);
    table[used].block = block;
    table[used].what = what;
    used++;
    pthread_mutex_unlock(&lock);
    return block;
}

static unsigned random_number(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

/* Random sizes and lifetimes: every bin, list and cache gets something. */
static void churn(uint64_t seed, int rounds)
{
    static __thread void *held[512];
    for (int round = 0; round < rounds; round++) {
        unsigned slot = random_number(&seed) % 512;
        unsigned kind = random_number(&seed) % 100;
        size_t size = random_number(&seed) % (kind < 80 ? 200 : kind < 98 ? 5000 : 150000);
        if (held[slot] && kind % 3 == 0) {
            held[slot] = realloc(held[slot], size + 1);
        } else {
            free(held[slot]);
            held[slot] = kind % 7 == 0 ? memalign(64 << kind % 5, size) : kind % 5 == 0 ? calloc(1, size) : malloc(size);
            if (held[slot]) memset(held[slot], 0xa5, size);
        }
    }
    for (int slot = 0; slot < 512; slot++) {
        if (held[slot] && slot % 4) free(held[slot]);
        else if (held[slot]) keep(held[slot], "churned");
        held[slot] = 0;
    }
}

static void fixed(void)
{
    void *list[64];
    /* Per-thread caches full, the rest in fastbins (or merged), with live ones between. */
    for (size_t size = 16; size <= 1100; size += 16) {
        for (int i = 0; i < 24; i++) list[i] = malloc(size);
        for (int i = 0; i < 24; i++) if (i % 3) free(list[i]); else keep(list[i], "between");
    }
    keep(malloc(0), "nothing");
    for (size_t align = 16; align <= 1 << 16; align *= 2) {
        keep(memalign(align, 40), "aligned");
        keep(aligned_alloc(align, align * 3), "aligned");
    }
    /* Large ones with mappings of their own. */
    keep(malloc(200000), "mapped");
    keep(calloc(1, 1 << 20), "mapped");
    memset(keep(malloc(40 << 20), "mapped"), 1, 4096);
    for (size_t align = 32; align <= 4 << 20; align *= 2) keep(memalign(align, 300000), "mapped-aligned");
    keep(realloc(malloc(3 << 20), 5 << 20), "mapped-grown");
    keep(realloc(malloc(5 << 20), 3 << 20), "mapped-shrunk");
    keep(realloc(memalign(1 << 16, 1 << 20), 9 << 20), "mapped-aligned-grown");
    keep(realloc(memalign(64, 3 << 20), 1 << 20), "mapped-aligned-shrunk");
    keep(valloc(1 << 20), "mapped-aligned");
    free(malloc(200000));
    keep(strdup("a string"), "string");
}

static pthread_barrier_t ready;
static void *thread(void *argument)
{
    churn((uintptr_t)argument * 77 + 1, 20000);
    if ((uintptr_t)argument == 1) fixed();
    /* More than one heap of 64 MiB. */
    if ((uintptr_t)argument == 2)
        for (int i = 0; i < 1600; i++) {
            void *block = malloc(100000);
            if (i % 3) free(block); else keep(block, "many");
        }
    if ((uintptr_t)argument == 3)
        for (int i = 0; i < 1500; i++) keep(malloc(100000), "two-heaps");
    pthread_barrier_wait(&ready);
    for (;;) pause();
    return 0;
}

static void *brief(void *argument)
{
    churn((uintptr_t)argument, 3000);
    return 0;
}

int main(int argc, char **argv)
{
#ifdef STATIC
    /* Larger than what start-up code has freed again, so behind all that it allocated. */
    void *first = keep(malloc(5000), "first");
#endif
    int threads = argc > 1 ? atoi(argv[1]) : 4;
    if (argc > 2 && atoi(argv[2]) == 1) {
        /* Somebody else moves the break, by an odd amount. */
        churn(5, 3000);
        char *foreign = sbrk(12345);
        memset(foreign, 0x21, 12345);
        for (int i = 0; i < 4000; i++) keep(malloc(100), "after-sbrk");
        sbrk(4096);
        for (int i = 0; i < 4000; i++) keep(malloc(100), "after-sbrk");
    }
    /* No room for the break: malloc takes to mmap, and its arena is in pieces. */
    if (argc > 2 && atoi(argv[2]) == 2) {
        char *end = sbrk(0);
        mmap((char *)(((uintptr_t)end + 4095) & -4096l), 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    }
    churn(42, 50000);
    fixed();
    pthread_t id;
    for (intptr_t i = 0; i < 3 && threads >= 0; i++) {
        pthread_create(&id, 0, brief, (void *)(i + 100));
        pthread_join(id, 0);
    }
    if (threads < 0) threads = 0;
    pthread_barrier_init(&ready, 0, threads + 1);
    for (intptr_t i = 0; i < threads; i++) pthread_create(&id, 0, thread, (void *)i);
    pthread_barrier_wait(&ready);

    static char buffer[1 << 16];
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    for (size_t i = 0; i < used; i++)
        printf("B %lx %zu %s\n", (long)table[i].block, malloc_usable_size(table[i].block), table[i].what);
#ifndef OLD
    struct mallinfo2 info = mallinfo2();
    printf("V mapped_blocks %zu\nV mapped_bytes %zu\nV main_system %zu\nV main_free %zu\nV main_fastbins %zu\nV main_top %zu\n",
           (size_t)info.hblks, (size_t)info.hblkhd, (size_t)info.arena, (size_t)info.fordblks, (size_t)info.fsmblks, (size_t)info.keepcost);
#endif
#ifdef STATIC
    printf("V first %zu\n", (size_t)first);
#endif
    printf("END\n");
    fflush(stdout);
    for (;;) pause();
}
