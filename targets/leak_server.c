// A process that nobody prepared: many linked live blocks and some thousands of lost ones, over several threads and arenas.
//
//     leak_server [LIVE [THREADS [rest|busy [LOST]]]]       (1000000 4 rest 5000)
//
// Prints one JSON object a line: `{"address":A,"size":S,"kind":"definite"|"indirect"}` for each lost block, then
// `{"ready":{...}}` with the counts. Then the threads rest, or allocate and free until it ends, by SIGTERM or the end of its
// input. It then looks whether all it held is as it was (else status 99) and prints `{"ended":{"operations":N}}`.
//
// A third of each thread's blocks is held by its stack, a third by its thread-local storage, a third by a global table. Its
// threads wait in calls that a signal or a stop must not be seen to interrupt.
#include "shapes.h"
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>

struct node {
    struct node *next;
    uint64_t seal;
};

struct lost {
    uint64_t complement; // of the address, so that this table holds nothing
    uint64_t size;
    uint64_t indirect;
};

enum { MOST_THREADS = 64, CHURNED = 64 };

static size_t live = 1000000, threads = 4, lost = 5000;
static int busy;

static struct node *volatile global_lists[MOST_THREADS];
static __thread struct node *volatile local_list;
static struct lost *table; // a mapping, by thread
static size_t lost_blocks, lost_bytes, live_bytes, operations;
static int prepared;
static int stop_pipe[2];
static volatile int stopping;
static volatile sig_atomic_t terminated;
static void *handed_over[MOST_THREADS]; // blocks on the way from one thread to another

static uint64_t random_number(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

static size_t live_of(size_t thread) { return live / threads + (thread < live % threads); }
static size_t lost_of(size_t thread) { return lost / threads + (thread < lost % threads); }
static size_t live_size(size_t i) { return sizeof(struct node) + i % 5 * 24; }

KEEP_CALL void prepend(struct node *volatile *list, size_t i) {
    struct node *node = BLOCK(live_size(i));
    node->next = *list;
    node->seal = ~(uint64_t)i;
    *list = node;
}

static void note(size_t thread, size_t *noted, const void *block, size_t size, int indirect) {
    struct lost *entry = &table[thread * (lost / threads + 1) + (*noted)++];
    entry->complement = ~(uint64_t)block;
    entry->size = size;
    entry->indirect = indirect;
}

// Loses one block, or two of which one holds the other.
KEEP_CALL void lose(size_t thread, size_t *noted, size_t most) {
    static const size_t sizes[] = {1, 8, 24, 25, 40, 100, 128, 500, 1032, 1033, 4000};
    size_t i = *noted, size = sizes[i % (sizeof sizes / sizeof *sizes)];
    void *block;
    if (i % 500 == 499) {
        size = 200000 + i;
        block = BLOCK(size);
    } else if (i % 100 == 57) {
        size = 30000 + i;
        block = BLOCK(size);
    } else if (i % 100 == 33) {
        size = 300;
        check(posix_memalign(&block, 256, size) == 0);
        memset(block, 0, size);
    } else {
        block = BLOCK(size);
    }
    note(thread, noted, block, size, 0);
    if (size >= sizeof(void *) && i % 8 == 0 && *noted < most) {
        void *second = BLOCK(size);
        *(void **)block = second;
        note(thread, noted, second, size, 1);
    }
}

// Live and lost blocks in turn, between others that are freed again, so that no heap is without holes.
KEEP_CALL void prepare(size_t thread, struct node *volatile *on_the_stack) {
    void *volatile between[16] = {NULL};
    size_t count = live_of(thread), most = lost_of(thread), noted = 0;
    uint64_t state = thread + 1;
    for (size_t i = 0; i < count; i++) {
        struct node *volatile *lists[] = {on_the_stack, &local_list, &global_lists[thread]};
        prepend(lists[i % 3], i);
        while (noted < most && noted * count < i * most) lose(thread, &noted, most);
        if (i % 4 == 0) {
            void *volatile *slot = &between[random_number(&state) % 16];
            free(*slot);
            *slot = BLOCK(random_number(&state) % 2000);
        }
    }
    while (noted < most) lose(thread, &noted, most);
    for (int i = 0; i < 16; i++) {
        free(between[i]);
        between[i] = NULL;
    }
}

KEEP_CALL void check_list(const struct node *node, size_t thread, size_t nth) {
    size_t count = live_of(thread);
    for (size_t i = count; i-- > 0;) {
        if (i % 3 != nth) continue;
        check(node != NULL && node->seal == ~(uint64_t)i);
        node = node->next;
    }
    check(node == NULL);
}

// Each block is held by a slot here, or on its way to another thread by a global one.
KEEP_CALL void churn(size_t thread) {
    void *volatile slots[CHURNED] = {NULL};
    uint64_t state = thread + 1000;
    size_t done = 0;
    while (!stopping) {
        uint64_t random = random_number(&state);
        void *volatile *slot = &slots[random % CHURNED];
        if (random >> 8 & 7) {
            free(*slot);
            *slot = NULL;
            *slot = BLOCK(random >> 16 & (random >> 60 == 0 ? 0x3ffff : 0x7ff));
        } else {
            *slot = __atomic_exchange_n(&handed_over[(random >> 16) % threads], *slot, __ATOMIC_SEQ_CST);
        }
        done++;
    }
    for (int i = 0; i < CHURNED; i++) free(slots[i]);
    __atomic_add_fetch(&operations, done, __ATOMIC_SEQ_CST);
}

static void *serve(void *argument) {
    size_t thread = (size_t)argument;
    struct node *volatile on_the_stack = NULL;
    prepare(thread, &on_the_stack);
    clear_traces();
    __atomic_add_fetch(&prepared, 1, __ATOMIC_SEQ_CST);
    if (busy) {
        churn(thread);
    } else if (thread % 2) {
        struct epoll_event event = {.events = EPOLLIN};
        int epoll = epoll_create1(0);
        check(epoll >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, stop_pipe[0], &event) == 0);
        check(epoll_wait(epoll, &event, 1, -1) == 1);
    } else {
        char byte;
        check(read(stop_pipe[0], &byte, 1) == 0);
    }
    check_list(on_the_stack, thread, 0);
    check_list(local_list, thread, 1);
    check_list(global_lists[thread], thread, 2);
    return NULL;
}

KEEP_CALL void print_lost(void) {
    for (size_t thread = 0; thread < threads; thread++) {
        for (size_t i = 0; i < lost_of(thread); i++) {
            const struct lost *entry = &table[thread * (lost / threads + 1) + i];
            say("{\"address\":%lu,\"size\":%lu,\"kind\":\"%s\"}\n", ~entry->complement, entry->size,
                entry->indirect ? "indirect" : "definite");
            lost_blocks++;
            lost_bytes += entry->size;
        }
        for (size_t i = 0; i < live_of(thread); i++) live_bytes += live_size(i);
    }
    munmap(table, (lost + threads) * sizeof *table);
}

static void terminate(int signal) {
    (void)signal;
    terminated = 1;
}

// Until SIGTERM, which is blocked elsewhere, or the end of input.
KEEP_CALL void await_the_end(const sigset_t *otherwise) {
    char bytes[256];
    while (!terminated) {
        struct pollfd input = {.fd = 0, .events = POLLIN};
        int ready = ppoll(&input, 1, NULL, otherwise);
        check(ready == 1 || (ready < 0 && errno == EINTR && terminated));
        if (ready == 1 && read(0, bytes, sizeof bytes) <= 0) return;
    }
}

int main(int argc, char **argv) {
    if (argc > 1) live = strtoul(argv[1], NULL, 10);
    if (argc > 2) threads = strtoul(argv[2], NULL, 10);
    if (argc > 3) busy = strcmp(argv[3], "busy") == 0;
    if (argc > 4) lost = strtoul(argv[4], NULL, 10);
    if (threads < 1 || threads > MOST_THREADS || (argc > 3 && !busy && strcmp(argv[3], "rest") != 0)) {
        say("usage: leak_server [LIVE [THREADS [rest|busy [LOST]]]]\n");
        return 2;
    }
    sigset_t blocked, otherwise;
    struct sigaction action = {.sa_handler = terminate};
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTERM);
    check(sigaction(SIGTERM, &action, NULL) == 0 && pthread_sigmask(SIG_BLOCK, &blocked, &otherwise) == 0);
    check(pipe(stop_pipe) == 0);
    table = mmap(NULL, (lost + threads) * sizeof *table, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(table != MAP_FAILED);

    pthread_t ids[MOST_THREADS];
    for (size_t i = 0; i < threads; i++) check(pthread_create(&ids[i], NULL, serve, (void *)i) == 0);
    while ((size_t)__atomic_load_n(&prepared, __ATOMIC_SEQ_CST) < threads) usleep(1000);
    print_lost();
    clear_traces();
    say("{\"ready\":{\"pid\":%d,\"mode\":\"%s\",\"threads\":%lu,\"live_blocks\":%lu,\"live_bytes\":%lu,"
        "\"lost_blocks\":%lu,\"lost_bytes\":%lu,\"churned_blocks\":%lu}}\n",
        getpid(), busy ? "busy" : "rest", threads, live, live_bytes, lost_blocks, lost_bytes,
        busy ? threads * (CHURNED + 1) : 0);

    await_the_end(&otherwise);
    stopping = 1;
    check(close(stop_pipe[1]) == 0);
    for (size_t i = 0; i < threads; i++) check(pthread_join(ids[i], NULL) == 0);
    for (size_t i = 0; i < threads; i++) free(handed_over[i]);
    say("{\"ended\":{\"operations\":%lu}}\n", operations);
    return 0;
}
