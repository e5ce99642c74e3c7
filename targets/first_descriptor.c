// Scripts and services count on descriptor numbers: the lowest free one, and nothing open that they did not open.
#include "common.h"
#include <fcntl.h>

int main(void) {
    int opened = open("/dev/null", O_RDONLY);
    say("first descriptor %d\n", opened);
    for (int i = 0; i < 1024; i++)
        if (i != opened && fcntl(i, F_GETFD) >= 0) say("open %d\n", i);
    return 0;
}
