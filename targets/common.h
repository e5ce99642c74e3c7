// Shared by the target programs.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef __cplusplus
#define KEEP_CALL __attribute__((noinline, noclone)) static
#else
#define KEEP_CALL __attribute__((noinline, noclone, noipa)) static
#endif

// Prints without stdio, whose buffer would be unfreed memory of the first line that prints.
__attribute__((format(printf, 1, 2), unused)) static void say(const char *format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof text - 1) length = sizeof text - 1;
    for (int done = 0; done < length;) {
        ssize_t n = write(1, text + done, length - done);
        if (n < 0) {
            if (errno == EINTR) continue;
            _exit(98);
        }
        done += n;
    }
}

// Ends the program with status 99 if its own result is wrong.
#define check(condition)                                                       \
    do {                                                                       \
        if (!(condition)) {                                                    \
            say("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);        \
            _exit(99);                                                         \
        }                                                                      \
    } while (0)

// Makes the compiler believe that a pointer is used, so that no allocation is optimized away.
__attribute__((unused)) static void *keep(void *pointer) {
    __asm__ volatile("" : "+r"(pointer) : : "memory");
    return pointer;
}
