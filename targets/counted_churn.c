// Allocates without pause in several threads, and keeps its own account in a file that it maps shared: for each thread and
// site, what was begun and what was done, so that after a kill at any instant the truth is known within one operation a thread.
//
// Arguments: the file, the number of threads, operations per thread (0: until killed).
#include "common.h"
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>

enum { SITES = 3, SLOTS = 512 };

struct account {
    // Of each site: blocks and bytes whose allocation was begun / done, whose free was begun / done.
    unsigned long allocate_begun[SITES][2], allocate_done[SITES][2], free_begun[SITES][2], free_done[SITES][2];
    char room[64];
};

static struct account *accounts;
static unsigned long operations;

static inline void add(unsigned long counter[2], unsigned long bytes) {
    __atomic_store_n(&counter[0], counter[0] + 1, __ATOMIC_RELEASE);
    __atomic_store_n(&counter[1], counter[1] + bytes, __ATOMIC_RELEASE);
}

struct block {
    unsigned char *memory;
    unsigned size, site;
};

static void *churn(void *argument) {
    long index = (long)argument;
    struct account *account = &accounts[index];
    struct block blocks[SLOTS] = {0};
    unsigned state = 12345 + index;
    unsigned long sum = 0;
    for (unsigned long i = 0; operations == 0 || i < operations; i++) {
        state = state * 1664525 + 1013904223;
        struct block *block = &blocks[state >> 23];
        unsigned size = 16 + (state >> 9) % 2000;
        unsigned action = (state >> 5) % 4;
        if (block->memory && action == 3) {
            unsigned old_site = block->site, old_size = block->size;
            add(account->free_begun[old_site], old_size);
            add(account->allocate_begun[2], size);
            block->memory = realloc(block->memory, size); // SITE 2
            add(account->free_done[old_site], old_size);
            add(account->allocate_done[2], size);
            *block = (struct block){block->memory, size, 2};
        } else if (block->memory) {
            sum += block->memory[0];
            add(account->free_begun[block->site], block->size);
            free(block->memory);
            add(account->free_done[block->site], block->size);
            block->memory = NULL;
        } else if (action == 0) {
            add(account->allocate_begun[1], size);
            block->memory = calloc(1, size); // SITE 1
            add(account->allocate_done[1], size);
            *block = (struct block){block->memory, size, 1};
        } else {
            add(account->allocate_begun[0], size);
            block->memory = malloc(size); // SITE 0
            add(account->allocate_done[0], size);
            *block = (struct block){block->memory, size, 0};
        }
        if (block->memory) block->memory[0] = i;
    }
    return (void *)sum;
}

int main(int argc, char **argv) {
    check(argc == 4);
    int threads = atoi(argv[2]);
    check(threads >= 1 && threads <= 64);
    operations = strtoul(argv[3], NULL, 10);
    int file = open(argv[1], O_RDWR | O_CREAT, 0600);
    check(file >= 0 && ftruncate(file, threads * sizeof *accounts) == 0);
    accounts = mmap(NULL, threads * sizeof *accounts, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    check(accounts != MAP_FAILED);
    close(file);
    say("begun\n");
    pthread_t ids[64];
    for (long i = 0; i < threads; i++) check(pthread_create(&ids[i], NULL, churn, (void *)i) == 0);
    unsigned long sum = 0;
    for (int i = 0; i < threads; i++) {
        void *result;
        check(pthread_join(ids[i], &result) == 0);
        sum += (unsigned long)result;
    }
    say("sum %lu\n", sum);
    return 0;
}
