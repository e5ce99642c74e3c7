// C++20 coroutines: frames on the heap, resumed from stacks that did not create them; one is never destroyed.
#include "common.h"
#include <coroutine>

struct Generator {
    struct promise_type {
        int value = 0;
        Generator get_return_object() { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
        std::suspend_always initial_suspend() noexcept { return {}; }
        std::suspend_always final_suspend() noexcept { return {}; }
        std::suspend_always yield_value(int next) {
            value = next;
            return {};
        }
        void return_void() {}
        void unhandled_exception() { abort(); }
        static void *operator new(size_t size) {
            keep(&size);
            return keep(malloc(1000)); // LEAK bytes=1000 blocks=1 allocated=2000/2
        }
        static void operator delete(void *block) { free(block); }
    };
    std::coroutine_handle<promise_type> handle;
};

static Generator count() {
    for (int i = 0;; i++) {
        keep(malloc(34)); // LEAK bytes=680 blocks=20
        co_yield i;
    }
}

int main() {
    Generator first = count(), second = count();
    int sum = 0;
    for (int i = 0; i < 10; i++) {
        first.handle.resume();
        second.handle.resume();
        sum += first.handle.promise().value + second.handle.promise().value;
    }
    check(sum == 90);
    first.handle.destroy();
    say("resumed\n");
    return 0;
}
