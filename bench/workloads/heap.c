/* A process to be scanned, for `cargo xtask bench scan`.
 *
 * Each of --threads threads allocates its share of --mib MiB (or of --blocks blocks) in blocks of --size bytes, all linked
 * in one list that its stack holds (the main thread's: a global variable), and loses its share of --lost others on the way,
 * of sizes that no other block has. Each then makes --churn operations of free and malloc on 64 slots of its own, and rests,
 * or, with --busy, goes on with that for ever (all but the main thread). Prints
 * `result pid=... blocks=... build_ns=... churn_ns=... huge_kib=... port=...`, and obeys lines on stdin, each answered by a
 * `result` line:
 *
 *   touch        writes to every page of its blocks, as a process does that goes on working; the time it takes
 *   fork N MS    N times: the same, then fork; the child sleeps for MS milliseconds and exits. Median time of fork
 *   copied       touches, forks a child that does nothing, and touches again; the second time
 *   end          ends; the end of stdin, too
 *
 *   --order  allocation  the list's links follow the order of allocation
 *            shuffled    they are in random order
 *            graph       the same, and each block points to three others at random
 *   --stack  KiB of address space for the stack of each thread but the main one (256)
 *   --huge   its memory is to be in huge pages (one thread only)
 *   --serve  another thread answers requests of 64 bytes on a TCP port, and writes to 16 pages for each
 *   --once   prints its result and ends; under LeakSanitizer, after a check with `check_ns`
 */
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CALL __attribute__((noinline, noclone, noipa))
#define PAGE 4096u

enum { SLOTS = 64, GRAPH_POINTERS = 3, REQUEST = 64, PAGES_PER_REQUEST = 16 };

struct node {
    struct node *next;
    struct node *others[GRAPH_POINTERS];
    char data[];
};

struct worker {
    pthread_t thread;
    size_t index, blocks, lost;
    uint64_t random;
    uint64_t *pages; /* numbers of the pages that its blocks are in; too small to be pointers to them */
    size_t page_count;
    uint64_t built, churned;
};

static struct {
    size_t mib, blocks, size, threads, stack, lost, churn;
    const char *order;
    int busy, huge, serve, once;
} opt = {.mib = 256, .size = 200, .threads = 1, .stack = 256, .order = "allocation"};

static struct worker *workers; /* a mapping */
static struct node *volatile main_list;
static pthread_barrier_t all_ready;
static uint64_t began;

#if defined(__SANITIZE_LEAK__) || defined(LEAK_SANITIZER)
int __lsan_do_recoverable_leak_check(void);
#endif

static uint64_t nanoseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t next_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

static void fail(const char *what) {
    fprintf(stderr, "heap: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *map(size_t bytes) {
    void *memory =
        mmap(NULL, bytes + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("mmap");
    return memory;
}

static void *allocate(size_t size) {
    void *block = malloc(size);
    if (!block) fail("malloc");
    return block;
}

/* No pointer of what was done is to be left on the stack or in a register, or blocks that are lost look as if they were not. */
CALL static void clear_traces(void) {
    volatile char dead[16 << 10];
    for (size_t i = 0; i < sizeof dead; i++) dead[i] = 0;
    __asm__ volatile("xor %%ebx, %%ebx; xor %%r12d, %%r12d; xor %%r13d, %%r13d; xor %%r14d, %%r14d; xor %%r15d, %%r15d\n"
                     "pxor %%xmm0, %%xmm0; pxor %%xmm1, %%xmm1; pxor %%xmm2, %%xmm2; pxor %%xmm3, %%xmm3"
                     ::: "rbx", "r12", "r13", "r14", "r15", "xmm0", "xmm1", "xmm2", "xmm3", "memory");
}

/* --- blocks ------------------------------------------------------------------------------------------------------- */

/* Chunks of 16 n bytes with n % 8 = 3 (48, 176, ... 944), and two large sizes. glibc may hand out a chunk that is 16 bytes
 * larger than needed, so no other block here has n % 8 = 2, 3 or 4. */
static const size_t lost_sizes[] = {40, 168, 296, 424, 552, 680, 808, 936, 1500};
enum { LOST_SIZES = sizeof lost_sizes / sizeof *lost_sizes, LARGE_LOST = 200000 };

static size_t churned_size(uint64_t random) {
    size_t sixteens = 8 * (random % 7 + 1) + (random >> 8) % 5 - 3; /* n % 8 = 5, 6, 7, 0, 1 */
    if ((random >> 16) % 256 == 0) return 3000 + (random >> 24) % 1000;
    if ((random >> 16) % 4096 == 1) return 20000 + (random >> 24) % 10000;
    return 16 * sixteens - 8;
}

static void note_page(struct worker *w, const void *byte) {
    uint64_t page = (uint64_t)byte / PAGE;
    if (w->page_count && w->pages[w->page_count - 1] == page) return;
    w->pages[w->page_count++] = page;
}

/* Loses one block, or two of which one holds the other. Returns how many. */
CALL static size_t lose(size_t nth, size_t most) {
    size_t size = nth % 500 == 499 ? LARGE_LOST : lost_sizes[nth % LOST_SIZES];
    void **block = allocate(size);
    memset(block, 0, size);
    size_t blocks = 1;
    if (nth % 8 == 0 && most > 1) {
        *block = allocate(size);
        memset(*block, 0, size);
        blocks = 2;
    }
    __asm__ volatile("" ::"r"(block) : "memory"); /* or the compiler does without the blocks */
    return blocks;
}

CALL static struct node *build(struct worker *w) {
    size_t count = w->blocks, lost = 0;
    int graph = !strcmp(opt.order, "graph"), shuffled = graph || !strcmp(opt.order, "shuffled");
    struct node **nodes = map(count * sizeof *nodes);
    w->pages = map(2 * count * sizeof *w->pages);
    for (size_t i = 0; i < count; i++) {
        nodes[i] = allocate(opt.size);
        memset(nodes[i], 'x', opt.size);
        note_page(w, nodes[i]);
        note_page(w, (char *)nodes[i] + opt.size - 1);
        while (lost < w->lost && lost * count < i * w->lost) lost += lose(lost, w->lost - lost);
    }
    while (lost < w->lost) lost += lose(lost, w->lost - lost);
    for (size_t i = count; shuffled && i-- > 1;) {
        size_t j = next_random(&w->random) % (i + 1);
        struct node *other = nodes[j];
        nodes[j] = nodes[i];
        nodes[i] = other;
    }
    for (size_t i = 0; i < count; i++) {
        nodes[i]->next = i + 1 < count ? nodes[i + 1] : NULL;
        for (size_t k = 0; graph && k < GRAPH_POINTERS; k++)
            nodes[i]->others[k] = nodes[next_random(&w->random) % count];
    }
    struct node *first = count ? nodes[0] : NULL;
    munmap(nodes, count * sizeof *nodes + PAGE);
    return first;
}

CALL static void churn(struct worker *w, size_t operations) {
    void *volatile slots[SLOTS] = {NULL};
    for (size_t i = 0; i < operations; i++) {
        uint64_t random = next_random(&w->random);
        void *volatile *slot = &slots[random % SLOTS];
        free(*slot);
        *slot = NULL;
        *slot = allocate(churned_size(random >> 8));
        *(volatile char *)*slot = 1;
    }
    for (int i = 0; i < SLOTS; i++) free(slots[i]);
}

CALL static struct node *prepare(struct worker *w) {
    struct node *first = build(w);
    w->built = nanoseconds();
    churn(w, opt.churn);
    w->churned = nanoseconds();
    return first;
}

static void *work(void *argument) {
    struct worker *w = argument;
    struct node *volatile list = prepare(w);
    clear_traces();
    pthread_barrier_wait(&all_ready);
    while (opt.busy) churn(w, 1000000);
    for (;;) pause();
    return list;
}

static size_t share(size_t whole, size_t index) { return whole / opt.threads + (index < whole % opt.threads); }

/* Makes the heap as large as it will be, and asks for huge pages for it. */
static void ask_for_huge_pages(void) {
    size_t bytes = opt.blocks * (opt.size + 24) + (64 << 20);
    mallopt(M_TOP_PAD, (int)(bytes < INT32_MAX ? bytes : INT32_MAX));
    free(allocate(1));
    const size_t huge = 2 << 20;
    uintptr_t end = (uintptr_t)sbrk(0) & ~(huge - 1);
    uintptr_t start = ((uintptr_t)allocate(1) + huge - 1) & ~(huge - 1);
    if (end <= start || madvise((void *)start, end - start, MADV_HUGEPAGE)) fail("madvise");
}

/* --- commands ----------------------------------------------------------------------------------------------------- */

static void write_to_page(uint64_t page) {
    __asm__ volatile("lock orb $0, %0" : "+m"(*(char *)(page * PAGE)));
}

static void touch(void) {
    for (size_t t = 0; t < opt.threads; t++)
        for (size_t i = 0; i < workers[t].page_count; i++) write_to_page(workers[t].pages[i]);
}

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void forks(unsigned count, unsigned child_ms) {
    uint64_t times[64];
    if (count < 1 || count > 64) count = 1;
    for (unsigned i = 0; i < count; i++) {
        touch();
        uint64_t before = nanoseconds();
        pid_t child = fork();
        if (child == 0) {
            usleep(child_ms * 1000);
            _exit(0);
        }
        times[i] = nanoseconds() - before;
        if (child < 0 || waitpid(child, NULL, 0) != child) fail("fork");
    }
    qsort(times, count, sizeof *times, by_value);
    printf("result fork_ns=%lu\n", times[count / 2]);
}

static uint64_t timed_touch(void) {
    uint64_t before = nanoseconds();
    touch();
    return nanoseconds() - before;
}

static uint64_t touch_while_copied(void) {
    touch();
    pid_t child = fork();
    if (child == 0)
        for (;;) pause();
    uint64_t time = timed_touch();
    if (child < 0 || kill(child, SIGKILL) || waitpid(child, NULL, 0) != child) fail("fork");
    return time;
}

static void obey(void) {
    char line[128];
    while (fgets(line, sizeof line, stdin)) {
        unsigned count, ms;
        if (sscanf(line, "fork %u %u", &count, &ms) == 2) {
            forks(count, ms);
        } else if (!strcmp(line, "touch\n")) {
            printf("result touch_ns=%lu\n", timed_touch());
        } else if (!strcmp(line, "copied\n")) {
            printf("result touch_ns=%lu\n", touch_while_copied());
        } else if (!strcmp(line, "end\n")) {
            return;
        } else {
            fprintf(stderr, "heap: what is %s", line);
            exit(2);
        }
        fflush(stdout);
    }
}

static void *serve(void *argument) {
    int listening = *(int *)argument, one = 1;
    uint64_t random = 0x9e3779b97f4a7c15u;
    char request[REQUEST];
    for (;;) {
        int client = accept(listening, NULL, NULL);
        if (client < 0) fail("accept");
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        while (recv(client, request, sizeof request, MSG_WAITALL) == REQUEST) {
            for (int i = 0; i < PAGES_PER_REQUEST; i++) {
                const struct worker *w = &workers[next_random(&random) % opt.threads];
                write_to_page(w->pages[next_random(&random) % w->page_count]);
            }
            if (send(client, request, sizeof request, MSG_NOSIGNAL) != REQUEST) break;
        }
        close(client);
    }
    return NULL;
}

static unsigned start_server(const pthread_attr_t *attributes) {
    static int listening;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof address;
    pthread_t thread;
    listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listening < 0 || bind(listening, (struct sockaddr *)&address, length) || listen(listening, 4) ||
        getsockname(listening, (struct sockaddr *)&address, &length))
        fail("socket");
    if (pthread_create(&thread, attributes, serve, &listening)) fail("pthread_create");
    return ntohs(address.sin_port);
}

/* --- main --------------------------------------------------------------------------------------------------------- */

static long huge_kib(void) {
    char line[256];
    long kib = 0;
    FILE *file = fopen("/proc/self/smaps_rollup", "re");
    if (!file) return 0;
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "AnonHugePages: %ld", &kib) == 1) break;
    fclose(file);
    return kib;
}

static size_t number(const char *text) {
    char *end;
    errno = 0;
    unsigned long value = strtoul(text, &end, 10);
    if (errno || *end) {
        fprintf(stderr, "heap: not a number: %s\n", text);
        exit(2);
    }
    return value;
}

static void parse(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i];
        if (!strcmp(name, "--busy")) { opt.busy = 1; continue; }
        if (!strcmp(name, "--huge")) { opt.huge = 1; continue; }
        if (!strcmp(name, "--serve")) { opt.serve = 1; continue; }
        if (!strcmp(name, "--once")) { opt.once = 1; continue; }
        if (++i >= argc) { fprintf(stderr, "heap: %s needs a value\n", name); exit(2); }
        if (!strcmp(name, "--mib")) opt.mib = number(argv[i]);
        else if (!strcmp(name, "--blocks")) opt.blocks = number(argv[i]);
        else if (!strcmp(name, "--size")) opt.size = number(argv[i]);
        else if (!strcmp(name, "--threads")) opt.threads = number(argv[i]);
        else if (!strcmp(name, "--stack")) opt.stack = number(argv[i]);
        else if (!strcmp(name, "--lost")) opt.lost = number(argv[i]);
        else if (!strcmp(name, "--churn")) opt.churn = number(argv[i]);
        else if (!strcmp(name, "--order")) opt.order = argv[i];
        else { fprintf(stderr, "heap: unknown option %s\n", name); exit(2); }
    }
    if (opt.threads < 1 || opt.size < sizeof(struct node) || opt.size > PAGE || (opt.huge && opt.threads > 1)) {
        fprintf(stderr, "heap: --threads, --size or --huge is out of range\n");
        exit(2);
    }
    /* What a block takes is 8 bytes more, rounded up to 16. */
    if (!opt.blocks) opt.blocks = (opt.mib << 20) / ((opt.size + 23) & ~(size_t)15);
}

static void start_workers(const pthread_attr_t *attributes) {
    workers = map(opt.threads * sizeof *workers);
    pthread_barrier_init(&all_ready, NULL, (unsigned)opt.threads);
    for (size_t i = 0; i < opt.threads; i++) {
        struct worker *w = &workers[i];
        w->index = i;
        w->blocks = share(opt.blocks, i);
        w->lost = share(opt.lost, i);
        w->random = 0x2545f4914f6cdd1du * (i + 1);
        if (i && pthread_create(&w->thread, attributes, work, w)) fail("pthread_create");
    }
    main_list = prepare(&workers[0]);
    clear_traces();
    pthread_barrier_wait(&all_ready);
}

CALL static void print_ready(unsigned port) {
    uint64_t built = 0, churned = 0;
    for (size_t i = 0; i < opt.threads; i++) {
        if (workers[i].built > built) built = workers[i].built;
        if (workers[i].churned > churned) churned = workers[i].churned;
    }
    printf("result pid=%d blocks=%zu bytes=%zu lost=%zu build_ns=%lu churn_ns=%lu huge_kib=%ld port=%u\n", (int)getpid(),
           opt.blocks, opt.blocks * ((opt.size + 23) & ~(size_t)15), opt.lost, built - began, churned - built, huge_kib(),
           port);
    fflush(stdout);
}

int main(int argc, char **argv) {
    parse(argc, argv);
    if (opt.huge) ask_for_huge_pages();
    began = nanoseconds();
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, opt.stack << 10);
    start_workers(&attributes);
    unsigned port = opt.serve ? start_server(&attributes) : 0;
    print_ready(port);
    clear_traces();
#if defined(__SANITIZE_LEAK__) || defined(LEAK_SANITIZER)
    uint64_t before = nanoseconds();
    __lsan_do_recoverable_leak_check();
    printf("result check_ns=%lu\n", nanoseconds() - before);
#endif
    if (!opt.once) obey();
    fflush(stdout);
    return 0;
}
