/* Two C libraries in one process: a second one in a namespace of its own (dlmopen), whose main arena may not use brk. */
#include <dlfcn.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define MOST 6000
static void *first[MOST], *second[MOST];

int main(int argc, char **argv)
{
    static char buffer[1 << 16];
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    void *library = dlmopen(LM_ID_NEWLM, argv[1], RTLD_NOW);
    if (!library) { fprintf(stderr, "%s\n", dlerror()); return 1; }
    void *(*get)(size_t) = (void *(*)(size_t))dlsym(library, "get");
    void (*put)(void *) = (void (*)(void *))dlsym(library, "put");
    size_t (*usable)(void *) = (size_t (*)(void *))dlsym(library, "usable");
    for (int i = 0; i < MOST; i++) {
        first[i] = malloc(i % 700);
        second[i] = get(i % 900);
    }
    second[0] = (put(second[0]), get(300000));
    for (int i = 1; i < MOST; i += 3) {
        free(first[i]);
        put(second[i]);
        first[i] = second[i] = 0;
    }
    for (int i = 0; i < MOST; i++) {
        if (first[i]) printf("B %lx %zu first\n", (long)first[i], malloc_usable_size(first[i]));
        if (second[i]) printf("B %lx %zu second\n", (long)second[i], usable(second[i]));
    }
    printf("END\n");
    fflush(stdout);
    for (;;) pause();
}
