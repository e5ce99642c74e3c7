// The plain case: each way that C code commonly loses memory, directly, through a wrapper and through libc.
#include "common.h"
#include <dirent.h>

KEEP_CALL void *checked_malloc(size_t size) {
    void *block = malloc(size); // LEAK bytes=353 blocks=5 allocated=1353/6
    check(block != NULL);
    return keep(block);
}

KEEP_CALL void caller_one(void) {
    for (int i = 0; i < 2; i++) keep(checked_malloc(100));
}

KEEP_CALL void caller_two(void) {
    for (int i = 0; i < 3; i++) keep(checked_malloc(50 + i));
    free(checked_malloc(1000));
}

KEEP_CALL void lose_in_a_loop(void) {
    for (int i = 0; i < 1000; i++) {
        char *kept = keep(malloc(24)); // FREED bytes=24000 blocks=1000
        char *lost = keep(malloc(40)); // LEAK bytes=4000 blocks=100 allocated=40000/1000
        memset(lost, i, 40);
        free(kept);
        if (i % 10) free(lost);
    }
}

KEEP_CALL void lose_overwritten_pointer(void) {
    char *name = keep(strdup("first value")); // LEAK bytes=12 blocks=1
    name = keep(strdup("second")); // FREED bytes=7 blocks=1
    free(name);
}

KEEP_CALL void lose_through_libc(void) {
    char *text = NULL;
    check(asprintf(&text, "%d bottles of %s", 99, "beer") == 18); // LEAK bytes=19 blocks=1
    keep(text);
    keep(strndup("abcdefgh", 3)); // LEAK bytes=4 blocks=1
    keep(realpath("/", NULL)); // LIBC
}

struct node {
    struct node *next;
    long payload[3];
};

KEEP_CALL void lose_a_list(void) {
    struct node *head = NULL;
    for (int i = 0; i < 64; i++) {
        struct node *node = calloc(1, sizeof *node); // LEAK bytes=2048 blocks=64
        node->next = head;
        head = keep(node);
    }
}

int main(void) {
    caller_one();
    caller_two();
    lose_in_a_loop();
    lose_overwritten_pointer();
    lose_through_libc();
    lose_a_list();
    say("lost on purpose\n");
    return 0;
}
