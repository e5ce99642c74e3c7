// Frees and allocations arrive after a thread's own data is torn down: from pthread key destructors, which may run several
// rounds, and from the destructors of thread-local objects.
#include "common.h"
#include <pthread.h>

extern int __cxa_thread_atexit_impl(void (*)(void *), void *, void *);
extern void *__dso_handle;

// The first key's destructor runs first; what it sets for the second key replaces, and so loses, the value that was there.
static pthread_key_t first_key, second_key;
static int rounds;

static void first_destructor(void *value) {
    free(value);
    keep(malloc(48)); // LEAK bytes=960 blocks=20
    if (__atomic_fetch_add(&rounds, 1, __ATOMIC_RELAXED) % 2 == 0)
        pthread_setspecific(second_key, malloc(72)); // FREED bytes=720 blocks=10
}

static void second_destructor(void *value) {
    free(value);
    free(keep(malloc(31))); // FREED bytes=620 blocks=20
}

static void thread_local_destructor(void *object) {
    free(object);
    keep(malloc(16)); // LEAK bytes=320 blocks=20
}

static void *thread(void *unused) {
    (void)unused;
    pthread_setspecific(first_key, malloc(200)); // FREED bytes=4000 blocks=20
    pthread_setspecific(second_key, malloc(300)); // LEAK bytes=3000 blocks=10 allocated=6000/20
    __cxa_thread_atexit_impl(thread_local_destructor, malloc(400), &__dso_handle); // LIBC
    return NULL;
}

int main(void) {
    check(pthread_key_create(&first_key, first_destructor) == 0);
    check(pthread_key_create(&second_key, second_destructor) == 0);
    for (int i = 0; i < 20; i++) {
        pthread_t id;
        check(pthread_create(&id, NULL, thread, NULL) == 0); // LIBC
        check(pthread_join(id, NULL) == 0);
    }
    say("20 threads\n");
    return 0;
}
