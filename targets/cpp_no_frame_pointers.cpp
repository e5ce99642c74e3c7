// Built without frame pointers: stacks through libstdc++'s own code and its templates.
#include "common.h"
#include <algorithm>
#include <functional>
#include <iterator>
#include <sstream>
#include <streambuf>
#include <string>
#include <vector>

struct LosingBuffer : std::streambuf {
    int_type overflow(int_type character) override {
        keep(malloc(19)); // LEAK bytes=57 blocks=3
        return character;
    }
};

KEEP_CALL void write_three(std::ostream &stream) {
    stream << 123;
    keep(&stream);
}

KEEP_CALL void lose_in_sort(std::vector<int> &numbers) {
    int calls = 0;
    std::sort(numbers.begin(), numbers.end(), [&](int a, int b) {
        if (calls++ < 4) keep(malloc(23)); // LEAK bytes=92 blocks=4
        return a < b;
    });
}

KEEP_CALL void call(const std::function<void(int)> &function) {
    function(8);
    keep(nullptr);
}

int main() {
    LosingBuffer buffer;
    std::ostream stream(&buffer);
    write_three(stream);
    std::vector<int> numbers;
    for (int i = 0; i < 100; i++) numbers.push_back(i * 37 % 100); // FREED bytes=1020 blocks=8
    lose_in_sort(numbers);
    call([](int size) {
        keep(malloc(size)); // LEAK bytes=8 blocks=1
    });
    std::string *text = new std::string("short"); // LEAK bytes=32 blocks=1
    for (int i = 0; i < 10; i++) text->append(50, 'x'); // LEAK bytes=881 blocks=1 allocated=1710/5
    say("%zu\n", text->size());
    return 0;
}
