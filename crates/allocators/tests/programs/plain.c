/* Allocates a little by whatever malloc there is. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(void)
{
    static char *kept;
    kept = malloc(100);
    printf("V kept %zu\nEND\n", (size_t)kept);
    fflush(stdout);
    for (;;) pause();
}
