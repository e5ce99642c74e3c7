// Objects of classes that are lost, and others held by a global map, by a thread-local variable, by a function's frame on a
// thread's stack, through a list and through an array. Waits; each line that it reads makes it drop some of what it holds.
//
//     holders_cpp            prints "ready"; on "drop" loses three sessions that the global map held, prints "dropped";
//                            on "grow" keeps 100 more records in a vector, prints "grown"; ends at the end of its input
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <pthread.h>
#include <string>
#include <unistd.h>
#include <vector>

namespace net {

struct Connection {
    virtual ~Connection() {}
    virtual void serve() {}
    long state[4] = {};
};

// Of a size that nothing else here has.
struct Session : Connection {
    long more[20] = {};
};

struct Admin : Session {
    void serve() override { state[0]++; }
    long rights[10] = {};
};

struct Request : Connection {
    long body[33] = {};
};

struct Node : Connection {
    Node *next = nullptr;
    void *payload = nullptr;
};

} // namespace net

std::map<int, net::Session *> sessions;
net::Node *list_head;
void **table;
std::vector<net::Request *> kept_requests;
static thread_local net::Request *current_request;

#define KEEP_CALL __attribute__((noinline, noclone))

// The compiler must think that somebody looks at the object.
template <typename T> static T *keep(T *object) {
    asm volatile("" ::"r"(object) : "memory");
    return object;
}

// Blocks hold no copy of a pointer in a register or in a dead part of the stack after this.
KEEP_CALL void clear_traces() {
    volatile char space[16384];
    memset((void *)space, 0, sizeof space);
    asm volatile("xor %%eax, %%eax\n xor %%ecx, %%ecx\n xor %%edx, %%edx\n xor %%esi, %%esi\n xor %%edi, %%edi\n"
                 "xor %%r8d, %%r8d\n xor %%r9d, %%r9d\n xor %%r10d, %%r10d\n xor %%r11d, %%r11d\n" ::
                     : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory");
}

KEEP_CALL void hold() {
    for (int i = 0; i < 10; i++) sessions[i] = new net::Session;
    for (int i = 0; i < 1000; i++) {
        net::Node *node = new net::Node;
        node->next = list_head;
        list_head = node;
    }
    net::Node *last = list_head;
    while (last->next) last = last->next;
    last->payload = malloc(1717);
    table = (void **)calloc(300, sizeof *table);
    for (int i = 0; i < 4; i++) table[10 + i] = malloc(777);
}

KEEP_CALL void lose() {
    for (int i = 0; i < 5; i++) {
        net::Session *volatile lost = keep(new net::Admin);
        lost = nullptr;
        (void)lost;
    }
}

KEEP_CALL void drop() {
    for (int i = 0; i < 3; i++) sessions[i] = nullptr;
}

KEEP_CALL void grow() {
    kept_requests.reserve(1000000);
    for (int i = 0; i < 100; i++) kept_requests.push_back(new net::Request);
}

static pthread_barrier_t prepared;

KEEP_CALL void wait_with(void *volatile *held) {
    clear_traces();
    pthread_barrier_wait(&prepared);
    for (;;) {
        pause();
        if (!*held) return;
    }
}

KEEP_CALL void hold_in_a_frame() {
    void *volatile held = malloc(4242);
    wait_with(&held);
}

static void *worker(void *) {
    pthread_setname_np(pthread_self(), "worker \"1\"");
    current_request = keep(new net::Request);
    keep(&current_request);
    hold_in_a_frame();
    return nullptr;
}

int main() {
    pthread_barrier_init(&prepared, nullptr, 2);
    hold();
    lose();
    pthread_t thread;
    pthread_create(&thread, nullptr, worker, nullptr);
    pthread_barrier_wait(&prepared);
    clear_traces();
    static char line[64];
    const char *answer = "ready\n";
    for (;;) {
        if (write(1, answer, strlen(answer)) < 0) return 1;
        ssize_t length = read(0, line, sizeof line - 1);
        if (length <= 0) return 0;
        line[length] = 0;
        if (strncmp(line, "drop", 4) == 0) {
            drop();
            answer = "dropped\n";
        } else if (strncmp(line, "grow", 4) == 0) {
            grow();
            answer = "grown\n";
        }
        clear_traces();
    }
}
