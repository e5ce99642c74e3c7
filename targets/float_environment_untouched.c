// A program that rounds upwards, has every floating-point exception signalled, and asks which ones happened: no allocation
// may change any of that.
#include "common.h"
#include <fenv.h>
#pragma STDC FENV_ACCESS ON

int main(void) {
    check(fesetround(FE_UPWARD) == 0);
    check(feclearexcept(FE_ALL_EXCEPT) == 0);
    check(feenableexcept(FE_ALL_EXCEPT) != -1);
    for (int i = 0; i < 20000; i++) {
        void *block = malloc(i % 5000); // FREED
        block = realloc(block, 1 + i % 300); // FREED
        free(block);
        check(fetestexcept(FE_ALL_EXCEPT) == 0);
        check(fegetround() == FE_UPWARD);
        check(fegetexcept() == FE_ALL_EXCEPT);
    }
    say("done\n");
    return 0;
}
