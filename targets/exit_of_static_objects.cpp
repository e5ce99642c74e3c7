// Destructors of static objects run before the process is examined.
#include "common.h"
#include <string>
#include <vector>

struct Owner {
    std::vector<std::string> texts;
    void *block = keep(malloc(4321));
    ~Owner() {
        free(block);
        say("destroyed\n");
    }
};

static Owner owner;

int main() {
    owner.texts.assign(10, std::string(100, 'x'));
    keep(malloc(1234));
    return 40;
}
