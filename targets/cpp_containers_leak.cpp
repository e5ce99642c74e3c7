// What C++ programs hold on to: containers that only grow, cycles of shared pointers, objects of threads, functions.
#include "common.h"
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

struct Cycle {
    std::shared_ptr<Cycle> other;
    char payload[100];
};

struct Base {
    virtual ~Base() = default;
    char payload[24];
};
struct Derived : Base {
    std::string name;
    Derived() : name(300, 'd') {} // LEAK bytes=301 blocks=1
};

static auto &cache = *new std::map<int, std::string>; // LEAK bytes=48 blocks=1

int main() {
    for (int i = 0; i < 100; i++) cache.emplace(i, std::string(500, 'c')); // LEAK bytes=57300 blocks=200
    {
        auto one = std::make_shared<Cycle>(); // LEAK bytes=136 blocks=1
        auto two = std::make_shared<Cycle>(); // LEAK bytes=136 blocks=1
        one->other = two;
        two->other = one;
    }
    Base *object = new Derived; // LEAK bytes=64 blocks=1
    keep(object);
    std::list<int> temporary;
    for (int i = 0; i < 50; i++) temporary.push_back(i); // FREED bytes=1200 blocks=50
    std::unordered_map<int, int> table;
    for (int i = 0; i < 100; i++) table[i] = i; // FREED
    std::thread worker([] { // LIBC
        std::vector<char> buffer(1000); // FREED bytes=1000 blocks=1
        keep(new std::vector<char>(2000)); // LEAK bytes=2024 blocks=2
        keep(buffer.data());
    }); // LIBC
    worker.join();
    struct Captured {
        char bytes[80];
    } captured = {};
    auto *function = new std::function<size_t()>([captured] { return sizeof captured.bytes; }); // LEAK bytes=112 blocks=2
    check((*function)() == 80);
    say("contained\n");
    return 0;
}
