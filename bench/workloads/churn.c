/* Allocation workloads for `cargo xtask bench overhead`.
 *
 * The program times its own inner phase, so that neither the start of the process nor the first growth of the heap blurs
 * the result, and prints one line per result: `result NAME=VALUE ...`.
 *
 *   churn    each thread keeps --live blocks of 16 to 1039 bytes; a pair frees a random one and allocates another
 *   pair     malloc and free of one block at once, nothing else live
 *   grow     allocates --ops blocks and frees none
 *   latency  churn, with every single pair timed: mean, 99.9th percentile and worst
 *   steps    grows to --ops blocks and stops at each step until a line arrives on stdin
 *   fork     --ops live blocks, then --forks times fork, `_exit` in the child, wait
 *
 * Every allocation is reached through --depth calls. At five of these levels one of three functions is chosen at random
 * (243 different stacks), since a single stack would flatter a tracer that remembers the last one; --steady turns this off.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

/* Keeps the compiler from folding levels into one another, or a call into a jump. */
#define LEVEL __attribute__((noinline, noclone, noipa))
#define NOT_A_TAIL_CALL() __asm__ volatile("" ::: "memory")

enum { VARIED_LEVELS = 5, WAYS = 3 };

struct options {
    const char *mode;
    long threads, ops, live, depth, forks, ballast_percent;
    int steady;
    const char *cgroup;
};

static struct options opt = {.mode = "churn", .threads = 1, .ops = 1000000, .live = 100000, .depth = 16, .forks = 21};

static uint64_t nanoseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Time that this thread had a processor: unlike the above, other programs' load hardly shows in it. */
static uint64_t own_nanoseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline uint64_t next_random(uint64_t *state) {
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

static void *check(void *block) {
    if (!block) {
        fprintf(stderr, "churn: out of memory\n");
        exit(1);
    }
    return block;
}

/* --- the call path ------------------------------------------------------------------------------------------------ */

/* Which of the three functions to take at each level: two bits per level, innermost level lowest. */
typedef unsigned __int128 path_t;

static void *step(long levels, path_t path, size_t size);

#define DEFINE_LEVEL(name)                                             \
    LEVEL static void *name(long levels, path_t path, size_t size) {   \
        void *block = step(levels, path, size);                        \
        NOT_A_TAIL_CALL();                                             \
        return block;                                                  \
    }
DEFINE_LEVEL(level_a)
DEFINE_LEVEL(level_b)
DEFINE_LEVEL(level_c)

LEVEL static void *leaf(size_t size) {
    void *block = malloc(size);
    NOT_A_TAIL_CALL();
    return block;
}

static inline __attribute__((always_inline)) void *step(long levels, path_t path, size_t size) {
    if (levels == 0) return leaf(size);
    switch ((unsigned)(path & 3)) {
    case 0: return level_a(levels - 1, path >> 2, size);
    case 1: return level_b(levels - 1, path >> 2, size);
    default: return level_c(levels - 1, path >> 2, size);
    }
}

/* One of the 243 paths: a choice at five levels spread over the stack, so that a change may come near the leaf or far out. */
static path_t choose_path(uint64_t random) {
    path_t path = 0;
    if (opt.steady) return path;
    for (int i = 0; i < VARIED_LEVELS; i++) {
        long level = (opt.depth - 1) * i / (VARIED_LEVELS - 1);
        path |= (path_t)(random % WAYS) << (2 * level);
        random /= WAYS;
    }
    return path;
}

enum { PATHS = 1024 };
static path_t paths[PATHS];

static void prepare_paths(void) {
    uint64_t state = 0x9e3779b97f4a7c15u;
    for (int i = 0; i < PATHS; i++) paths[i] = choose_path(next_random(&state) >> 16);
}

static inline void *allocate(uint64_t random) {
    size_t size = 16 + (random & 1023);
    return step(opt.depth - 1, paths[(random >> 10) & (PATHS - 1)], size);
}

/* --- churn, pair, grow, latency ----------------------------------------------------------------------------------- */

struct worker {
    pthread_t thread;
    uint64_t seed;
    uint64_t began, ended, own;
    uint64_t *latencies;
};

static pthread_barrier_t ready;

/* Each mode's timed phase is a function of its own, so that the number of frames below the path is the same. */
LEVEL static void churn(struct worker *w, void **blocks) {
    uint64_t state = w->seed;
    for (long i = 0; i < opt.ops; i++) {
        uint64_t random = next_random(&state);
        void **slot = &blocks[(random >> 20) % (uint64_t)opt.live];
        free(*slot);
        *slot = allocate(random);
        *(volatile char *)*slot = 1;
    }
}

LEVEL static void churn_timed(struct worker *w, void **blocks) {
    uint64_t state = w->seed;
    for (long i = 0; i < opt.ops; i++) {
        uint64_t random = next_random(&state);
        void **slot = &blocks[(random >> 20) % (uint64_t)opt.live];
        uint64_t before = __rdtsc();
        free(*slot);
        *slot = allocate(random);
        w->latencies[i] = __rdtsc() - before;
        *(volatile char *)*slot = 1;
    }
}

LEVEL static void pair(struct worker *w) {
    uint64_t state = w->seed;
    for (long i = 0; i < opt.ops; i++) {
        void *block = allocate(next_random(&state));
        *(volatile char *)block = 1;
        free(block);
    }
}

LEVEL static void grow(struct worker *w, void **blocks) {
    uint64_t state = w->seed;
    for (long i = 0; i < opt.ops; i++) {
        uint64_t random = next_random(&state);
        /* Small blocks: the kernel's page faults for large ones would drown what is measured. */
        blocks[i] = check(step(opt.depth - 1, paths[(random >> 10) & (PATHS - 1)], 16 + (random & 63)));
    }
}

static void *work(void *argument) {
    struct worker *w = argument;
    int grows = !strcmp(opt.mode, "grow");
    long slots = grows ? opt.ops : opt.live;
    void **blocks = check(calloc((size_t)slots, sizeof *blocks));
    uint64_t state = w->seed ^ 0x5555555555555555u;
    if (!grows && strcmp(opt.mode, "pair"))
        for (long i = 0; i < opt.live; i++) blocks[i] = check(allocate(next_random(&state)));
    pthread_barrier_wait(&ready);
    uint64_t own = own_nanoseconds();
    w->began = nanoseconds();
    if (grows) grow(w, blocks);
    else if (!strcmp(opt.mode, "pair")) pair(w);
    else if (!strcmp(opt.mode, "latency")) churn_timed(w, blocks);
    else churn(w, blocks);
    w->ended = nanoseconds();
    w->own = own_nanoseconds() - own;
    for (long i = 0; i < slots; i++) free(blocks[i]);
    free(blocks);
    return NULL;
}

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void print_latencies(struct worker *w) {
    double per_tick = 0;
    uint64_t t0 = nanoseconds(), c0 = __rdtsc();
    while (nanoseconds() - t0 < 50000000) {}
    per_tick = (double)(nanoseconds() - t0) / (double)(__rdtsc() - c0);
    double sum = 0;
    for (long i = 0; i < opt.ops; i++) sum += (double)w->latencies[i];
    qsort(w->latencies, (size_t)opt.ops, sizeof *w->latencies, by_value);
    printf("result mean_ns=%.1f p999_ns=%.1f worst_ns=%.1f\n", sum / (double)opt.ops * per_tick,
           (double)w->latencies[opt.ops - 1 - opt.ops / 1000] * per_tick,
           (double)w->latencies[opt.ops - 1] * per_tick);
}

static void run_workers(void) {
    struct worker *workers = check(calloc((size_t)opt.threads, sizeof *workers));
    pthread_barrier_init(&ready, NULL, (unsigned)opt.threads);
    for (long i = 0; i < opt.threads; i++) workers[i].seed = 0x2545f4914f6cdd1du * (uint64_t)(i + 1);
    if (!strcmp(opt.mode, "latency")) {
        workers[0].latencies = check(malloc((size_t)opt.ops * sizeof(uint64_t)));
        memset(workers[0].latencies, 0, (size_t)opt.ops * sizeof(uint64_t)); /* touched before, not while timing */
    }
    for (long i = 1; i < opt.threads; i++)
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i])) exit(1);
    work(&workers[0]);
    for (long i = 1; i < opt.threads; i++) pthread_join(workers[i].thread, NULL);
    uint64_t began = UINT64_MAX, ended = 0, own = 0;
    for (long i = 0; i < opt.threads; i++) {
        if (workers[i].began < began) began = workers[i].began;
        if (workers[i].ended > ended) ended = workers[i].ended;
        own += workers[i].own;
    }
    if (workers[0].latencies) {
        print_latencies(&workers[0]);
        return;
    }
    /* Time of one core per pair: with more threads than cores the cores are what is shared. */
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    long at_once = opt.threads < cores ? opt.threads : cores;
    double pairs = (double)opt.ops * (double)opt.threads;
    printf("result ns_per_pair=%.3f cpu_ns_per_pair=%.3f\n", (double)(ended - began) * (double)at_once / pairs,
           (double)own / pairs);
}

/* --- steps, fork -------------------------------------------------------------------------------------------------- */

static void wait_for_line(void) {
    int c;
    do c = getchar();
    while (c != '\n' && c != EOF);
}

static void steps(void) {
    uint64_t state = 0x2545f4914f6cdd1du;
    void **blocks = check(calloc((size_t)opt.ops, sizeof *blocks));
    long next = 50000;
    for (long i = 0; i < opt.ops; i++) {
        blocks[i] = check(step(opt.depth - 1, paths[next_random(&state) & (PATHS - 1)], 16));
        if (i + 1 >= next || i + 1 == opt.ops) {
            printf("result pid=%d live=%ld\n", (int)getpid(), i + 1);
            fflush(stdout);
            wait_for_line();
            next = next + next / 64;
        }
    }
}

static void forks(void) {
    uint64_t state = 0x2545f4914f6cdd1du;
    void **blocks = check(calloc((size_t)opt.ops, sizeof *blocks));
    for (long i = 0; i < opt.ops; i++)
        blocks[i] = check(step(opt.depth - 1, paths[next_random(&state) & (PATHS - 1)], 64));
    uint64_t *returned = check(calloc((size_t)opt.forks, sizeof *returned));
    uint64_t *reaped = check(calloc((size_t)opt.forks, sizeof *reaped));
    uint64_t *allocating = check(calloc((size_t)opt.forks, sizeof *allocating));
    for (long i = 0; i < 2 * opt.forks; i++) {
        int child_allocates = (int)(i & 1);
        uint64_t before = nanoseconds();
        pid_t child = fork();
        if (child == 0) {
            if (child_allocates) *(volatile char *)check(malloc(100)) = 1;
            _exit(0);
        }
        uint64_t after = nanoseconds();
        if (child < 0 || waitpid(child, NULL, 0) != child) {
            fprintf(stderr, "churn: fork: %s\n", strerror(errno));
            exit(1);
        }
        uint64_t done = nanoseconds();
        if (child_allocates) allocating[i / 2] = done - before;
        else {
            returned[i / 2] = after - before;
            reaped[i / 2] = done - before;
        }
    }
    qsort(returned, (size_t)opt.forks, sizeof *returned, by_value);
    qsort(reaped, (size_t)opt.forks, sizeof *reaped, by_value);
    qsort(allocating, (size_t)opt.forks, sizeof *allocating, by_value);
    printf("result fork_ns=%llu reaped_ns=%llu allocating_ns=%llu\n", (unsigned long long)returned[opt.forks / 2],
           (unsigned long long)reaped[opt.forks / 2], (unsigned long long)allocating[opt.forks / 2]);
}

/* --- the memory cgroup -------------------------------------------------------------------------------------------- */

static long read_number(const char *directory, const char *v1, const char *v2) {
    const char *names[] = {v2, v1};
    for (int i = 0; i < 2; i++) {
        char path[512];
        long value = 0;
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        FILE *file = fopen(path, "re");
        if (!file) continue;
        int got = fscanf(file, "%ld", &value);
        fclose(file);
        if (got == 1) return value;
    }
    fprintf(stderr, "churn: cannot read %s in %s\n", v1, directory);
    exit(1);
}

/* Moves this process alone (not the tool that started it) into the cgroup. */
static void enter_cgroup(void) {
    char path[512];
    snprintf(path, sizeof path, "%s/cgroup.procs", opt.cgroup);
    FILE *file = fopen(path, "we");
    if (!file || fprintf(file, "%d\n", (int)getpid()) < 0 || fclose(file)) {
        fprintf(stderr, "churn: %s: %s\n", path, strerror(errno));
        exit(1);
    }
}

/* Fills the cgroup so far that --ballast-percent of its limit will be in use once the live blocks are there too. */
static void fill_cgroup(void) {
    long limit = read_number(opt.cgroup, "memory.limit_in_bytes", "memory.max");
    long live = opt.live * (527 + 16) + opt.live * 8;
    const long chunk = 1 << 20;
    while (read_number(opt.cgroup, "memory.usage_in_bytes", "memory.current") + live + chunk <
           limit / 100 * opt.ballast_percent)
        memset(check(malloc((size_t)chunk)), 1, (size_t)chunk);
}

/* --- main --------------------------------------------------------------------------------------------------------- */

static long number(const char *text) {
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || *end || value < 1) {
        fprintf(stderr, "churn: not a number above zero: %s\n", text);
        exit(2);
    }
    return value;
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i];
        if (!strcmp(name, "--steady")) { opt.steady = 1; continue; }
        if (++i >= argc) { fprintf(stderr, "churn: %s needs a value\n", name); return 2; }
        if (!strcmp(name, "--mode")) opt.mode = argv[i];
        else if (!strcmp(name, "--threads")) opt.threads = number(argv[i]);
        else if (!strcmp(name, "--ops")) opt.ops = number(argv[i]);
        else if (!strcmp(name, "--live")) opt.live = number(argv[i]);
        else if (!strcmp(name, "--depth")) opt.depth = number(argv[i]);
        else if (!strcmp(name, "--forks")) opt.forks = number(argv[i]);
        else if (!strcmp(name, "--cgroup")) opt.cgroup = argv[i];
        else if (!strcmp(name, "--ballast-percent")) opt.ballast_percent = number(argv[i]);
        else { fprintf(stderr, "churn: unknown option %s\n", name); return 2; }
    }
    if (opt.depth > 64) { fprintf(stderr, "churn: --depth is at most 64\n"); return 2; }
    prepare_paths();
    if (opt.cgroup) enter_cgroup();
    if (opt.cgroup && opt.ballast_percent) fill_cgroup();
    if (!strcmp(opt.mode, "steps")) steps();
    else if (!strcmp(opt.mode, "fork")) forks();
    else run_workers();
    return 0;
}
