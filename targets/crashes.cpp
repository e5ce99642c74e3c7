// A service that holds containers of objects, loses some, says how much (bytes as malloc rounds them), and crashes.
#include "shapes.h"
#include <malloc.h>
#include <map>
#include <memory>
#include <string>
#include <vector>

struct Session {
    virtual ~Session() = default;
    std::string name = std::string(100, 'n');
    int number = 0;
};

static std::map<int, std::unique_ptr<Session>> sessions;
static volatile size_t lost_bytes, lost_blocks;

KEEP_CALL void serve() {
    for (int i = 0; i < 500; i++) {
        sessions[i] = std::make_unique<Session>();
        if (i % 5 == 0) {
            Session *lost = static_cast<Session *>(keep(sessions[i].release()));
            lost_blocks = lost_blocks + 1;
            lost_bytes = lost_bytes + malloc_usable_size(lost);
        }
    }
}

KEEP_CALL void crash() { *static_cast<volatile int *>(keep(nullptr)) = 1; }

int main() {
    std::vector<std::vector<std::string>> table(50, std::vector<std::string>(20, std::string(50, 'x')));
    serve();
    clear_traces();
    say("{\"bytes\":%zu,\"blocks\":%zu}\n", static_cast<size_t>(lost_bytes), static_cast<size_t>(lost_blocks));
    crash();
    return static_cast<int>(table.size());
}
