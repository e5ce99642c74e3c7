// Waits in system calls with a time limit, and checks that none ends early or with EINTR.
// waiting KIND ROUNDS: in the main thread only, then says what went wrong and ends.
// waiting all: each kind in a thread of its own; the main thread answers requests.
#include <errno.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { MS = 150 };

struct kind {
    const char *name;
    int (*wait)(void); // 0 if it waited to the end
    unsigned long rounds, failures;
    char message[128];
};

static struct timespec limit = {0, MS * 1000000L};

static int expect(long result, int error) {
    return result == -1 && errno == error ? 0 : 1;
}
static int in_nanosleep(void) { return nanosleep(&limit, NULL) != 0; }
static int in_nanosleep_rest(void) {
    struct timespec rest;
    return nanosleep(&limit, &rest) != 0;
}
static int in_poll(void) { return poll(NULL, 0, MS) != 0; }
static int in_ppoll(void) {
    sigset_t none;
    sigemptyset(&none);
    struct timespec copy = limit;
    return ppoll(NULL, 0, &copy, &none) != 0;
}
static int in_select(void) {
    struct timeval time = {0, MS * 1000};
    return select(0, NULL, NULL, NULL, &time) != 0;
}
static int in_futex(void) {
    int word = 0;
    return expect(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &limit, NULL, 0), ETIMEDOUT);
}
static int in_condition(void) {
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    at.tv_nsec += MS * 1000000L;
    at.tv_sec += at.tv_nsec / 1000000000L;
    at.tv_nsec %= 1000000000L;
    pthread_mutex_lock(&mutex);
    return pthread_cond_timedwait(&condition, &mutex, &at) != ETIMEDOUT;
}
static int in_epoll_wait(void) {
    static __thread int epoll = -1;
    if (epoll < 0) epoll = epoll_create1(0);
    struct epoll_event event;
    return epoll_wait(epoll, &event, 1, MS) != 0;
}
static int in_epoll_pwait(void) {
    static __thread int epoll = -1;
    if (epoll < 0) epoll = epoll_create1(0);
    struct epoll_event event;
    sigset_t none;
    sigemptyset(&none);
    return epoll_pwait(epoll, &event, 1, MS, &none) != 0;
}
static int in_sigtimedwait(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    return expect(sigtimedwait(&set, NULL, &limit), EAGAIN);
}
static int in_recv(void) {
    static __thread int pair[2] = {-1};
    if (pair[0] < 0) {
        socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
        struct timeval time = {0, MS * 1000};
        setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    }
    char byte;
    return expect(recv(pair[0], &byte, 1, 0), EAGAIN);
}
static int in_accept(void) {
    static __thread int listener = -1;
    if (listener < 0) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        listener = socket(AF_INET, SOCK_STREAM, 0);
        bind(listener, (void *)&address, sizeof address);
        listen(listener, 1);
        struct timeval time = {0, MS * 1000};
        setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    }
    return expect(accept(listener, NULL, NULL), EAGAIN);
}
static int in_semtimedop(void) {
    static __thread int set = -1;
    if (set < 0) {
        set = semget(IPC_PRIVATE, 1, 0600);
        // Gone with the process: removed at its next failure otherwise.
    }
    struct sembuf operation = {0, -1, 0};
    int result = expect(semtimedop(set, &operation, 1, &limit), EAGAIN);
    semctl(set, 0, IPC_RMID);
    set = -1;
    return result;
}
// These two have no time limit: somebody else ends the wait.
static int in_read(void) {
    int ends[2];
    if (pipe(ends)) return 1;
    pid_t tid = 0;
    (void)tid;
    pthread_t thread;
    struct timespec copy = limit;
    int *writer = malloc(sizeof *writer);
    *writer = ends[1];
    (void)copy;
    extern void *write_later(void *);
    pthread_create(&thread, NULL, write_later, writer);
    char byte;
    ssize_t got = read(ends[0], &byte, 1);
    pthread_join(thread, NULL);
    close(ends[0]);
    return got != 1;
}
void *write_later(void *argument) {
    int *writer = argument;
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_nsec += MS * 1000000L;
    at.tv_sec += at.tv_nsec / 1000000000L;
    at.tv_nsec %= 1000000000L;
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
    if (write(*writer, "x", 1) != 1) abort();
    close(*writer);
    free(writer);
    return NULL;
}

static struct kind kinds[] = {
    {.name = "nanosleep", .wait = in_nanosleep},   {.name = "nanosleep_rest", .wait = in_nanosleep_rest},
    {.name = "poll", .wait = in_poll},             {.name = "ppoll", .wait = in_ppoll},
    {.name = "select", .wait = in_select},         {.name = "futex", .wait = in_futex},
    {.name = "condition", .wait = in_condition},   {.name = "epoll_wait", .wait = in_epoll_wait},
    {.name = "epoll_pwait", .wait = in_epoll_pwait}, {.name = "sigtimedwait", .wait = in_sigtimedwait},
    {.name = "recv", .wait = in_recv},             {.name = "accept", .wait = in_accept},
    {.name = "semtimedop", .wait = in_semtimedop}, {.name = "read", .wait = in_read},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

static void once(struct kind *kind) {
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    errno = 0;
    int failed = kind->wait();
    int error = errno;
    clock_gettime(CLOCK_MONOTONIC, &end);
    long elapsed = (end.tv_sec - start.tv_sec) * 1000000L + (end.tv_nsec - start.tv_nsec) / 1000;
    // Clocks of different grain may differ by a few milliseconds.
    if (failed || elapsed < (MS - 10) * 1000L) {
        kind->failures++;
        snprintf(kind->message, sizeof kind->message, "%s: failed %d, %s, %ld us", kind->name, failed,
                 strerror(error), elapsed);
    }
    __atomic_add_fetch(&kind->rounds, 1, __ATOMIC_SEQ_CST);
}

static void *forever(void *kind) {
    for (;;) once(kind);
    return NULL;
}

int main(int argc, char **argv) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    if (argc > 2) {
        puts("ready");
        fflush(stdout);
        for (int i = 0; i < KINDS; i++)
            if (!strcmp(kinds[i].name, argv[1])) {
                for (int round = atoi(argv[2]); round > 0; round--) once(&kinds[i]);
                printf("%lu %s\n", kinds[i].failures, kinds[i].message);
                return kinds[i].failures != 0;
            }
        return 9;
    }
    for (int i = 0; i < KINDS; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, forever, &kinds[i]);
    }
    puts("ready");
    fflush(stdout);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        unsigned long least = -1ul, failures = 0;
        const char *message = "";
        for (int i = 0; i < KINDS; i++) {
            unsigned long rounds = __atomic_load_n(&kinds[i].rounds, __ATOMIC_SEQ_CST);
            if (rounds < least) least = rounds;
            failures += kinds[i].failures;
            if (kinds[i].failures) message = kinds[i].message;
        }
        printf("%lu %lu %s\n", failures, least, message);
        fflush(stdout);
    }
    return 0;
}
