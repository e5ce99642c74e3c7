// Built without frame pointers: the stack passes through functions of libc that have none either, which call back.
#include "common.h"
#include <search.h>

KEEP_CALL void lose_one(int value) {
    keep(malloc(10 + value)); // LEAK bytes=60 blocks=5
}

KEEP_CALL int compare(const void *left, const void *right) {
    static int calls;
    if (calls < 5) lose_one(calls);
    calls++;
    return *(const int *)left - *(const int *)right;
}

KEEP_CALL void sort_records(int *records, int count) {
    char large_frame[3000];
    keep(large_frame);
    qsort(records, count, sizeof *records, compare);
    keep(large_frame);
}

KEEP_CALL int compare_keys(const void *left, const void *right) {
    keep(malloc(7)); // LEAK bytes=7 blocks=1
    return left != right;
}

KEEP_CALL void search_tree(void) {
    static void *root;
    static int first, second;
    check(tsearch(&first, &root, compare_keys) != NULL); // LEAK blocks=1
    check(tfind(&second, &root, compare_keys) == NULL);
}

KEEP_CALL void variable_length_array(int size) {
    char array[size];
    keep(array);
    keep(malloc(13)); // LEAK bytes=13 blocks=1
    keep(array);
}

int main(void) {
    int records[50];
    for (int i = 0; i < 50; i++) records[i] = (i * 37) % 50;
    sort_records(records, 50);
    for (int i = 0; i < 50; i++) check(records[i] == i);
    search_tree();
    variable_length_array(5000);
    say("sorted\n");
    return 0;
}
