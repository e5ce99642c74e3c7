// Shapes of lost and held memory in C++: what `leakscope leaks` says of each must be what memcheck says. Built with
// -D_GLIBCXX_USE_CXX11_ABI=0 it has instead those of the strings before GCC 5, which are held by pointers into their blocks.
#include "shapes.h"
#include <any>
#include <coroutine>
#include <deque>
#include <exception>
#include <functional>
#include <list>
#include <malloc.h>
#include <map>
#include <memory>
#include <memory_resource>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

static void *volatile held[4];

// Makes what is given up or kept look used.
template <typename T> static T *seen(T *pointer) { return static_cast<T *>(keep(pointer)); }

#if !_GLIBCXX_USE_CXX11_ABI

// The first reference-counted strings: length, capacity and count before the text. One pointer to the text holds all.
struct Named {
    std::string name;
    long payload[2] = {};
};

KEEP_CALL void old_string_lost() { seen(new std::string(100, 's')); }
KEEP_CALL void old_string_held() {
    static char place[sizeof(std::string)];
    new (keep(place)) std::string(100, 's');
}
KEEP_CALL void old_string_in_a_held_object() { held[0] = new Named{std::string(100, 's')}; }
KEEP_CALL void old_string_in_a_lost_object() { seen(new Named{std::string(100, 's')}); }
KEEP_CALL void old_string_shared() {
    std::string text(100, 's');
    held[0] = new Named{text};
    seen(new Named{text});
}
KEEP_CALL void old_string_held_past_its_text() {
    held[0] = const_cast<char *>(seen(new std::string(100, 's'))->data()) + 8;
}
KEEP_CALL void old_strings_in_a_held_vector() {
    auto *names = new std::vector<std::string>;
    names->reserve(10);
    for (int i = 0; i < 10; i++) names->push_back(std::string(50 + i, 'v'));
    held[0] = names;
}

static const struct shape shapes[] = {
    SHAPE(old_string_lost), // definite=8/1 indirect=125/1
    SHAPE(old_string_held), // reachable=125/1
    SHAPE(old_string_in_a_held_object), // reachable=149/2
    SHAPE(old_string_in_a_lost_object), // definite=24/1 indirect=125/1
    SHAPE(old_string_shared), // definite=24/1 reachable=149/2
    SHAPE(old_string_held_past_its_text), // definite=8/1 possible=125/1
    SHAPE(old_strings_in_a_held_vector), // reachable=899/12
};

#else

struct Node {
    Node *next = nullptr;
    long payload[3] = {};
    explicit Node(Node *next) : next(next) {}
};

KEEP_CALL Node *new_list(int length) {
    Node *head = nullptr;
    for (int i = 0; i < length; i++) head = new Node(head);
    return head;
}

// Plain new.

KEEP_CALL void lost_object() { seen(new Node(new_list(3))); }
KEEP_CALL void held_object() { held[0] = new Node(new_list(3)); }
KEEP_CALL void lost_array() { seen(new long[30]()); }
struct alignas(128) Wide {
    Node *list = new_list(2);
    char payload[200] = {};
};
KEEP_CALL void lost_overaligned_object() { seen(new Wide); }
KEEP_CALL void held_overaligned_object() { held[0] = new Wide; }
KEEP_CALL void held_inside_an_overaligned_object() { held[0] = (new Wide)->payload; }

// Arrays of objects with destructors: their number stands before the first, to which the program has the pointer.

struct Destroyed {
    Node *list = nullptr;
    long payload[2] = {};
    ~Destroyed() { list = nullptr; }
};
KEEP_CALL Destroyed *new_array() {
    auto *array = new Destroyed[20];
    array[7].list = new_list(3);
    return array;
}
KEEP_CALL void array_with_a_cookie_held() { held[0] = new_array(); }
KEEP_CALL void array_with_a_cookie_lost() { seen(new_array()); }
KEEP_CALL void array_with_a_cookie_held_by_its_second_element() { held[0] = new_array() + 1; }
KEEP_CALL void empty_array_with_a_cookie_held() { held[0] = new Destroyed[atoi("0")]; }
KEEP_CALL void array_with_a_cookie_in_a_lost_object() {
    seen(new Node(nullptr))->next = reinterpret_cast<Node *>(new_array());
}
struct alignas(16) Aligned {
    long payload[2] = {};
    ~Aligned() { payload[0] = 0; }
};
KEEP_CALL void array_with_a_padded_cookie_held() { held[0] = new Aligned[20]; }

// Several bases: the pointer to another than the first leads into the object.

struct First {
    virtual ~First() = default;
    virtual int first() { return 1; }
    long payload = 0;
};
struct Second {
    virtual ~Second() = default;
    virtual int second() { return 2; }
    Node *list = nullptr;
};
struct Third {
    long payload = 3;
};
struct Derived : First, Second, Third {
    int first() override { return 10; }
    int second() override { return 20; }
};
struct Virtual : virtual First, virtual Second {
    long payload = 5;
};
KEEP_CALL Derived *new_derived() {
    auto *derived = new Derived;
    derived->list = new_list(2);
    return derived;
}
KEEP_CALL void held_by_the_first_base() { held[0] = static_cast<First *>(new_derived()); }
KEEP_CALL void held_by_the_second_base() { held[0] = static_cast<Second *>(new_derived()); }
KEEP_CALL void held_by_a_base_without_virtual_functions() { held[0] = static_cast<Third *>(new_derived()); }
KEEP_CALL void held_by_a_virtual_base() { held[0] = static_cast<Second *>(new Virtual); }
KEEP_CALL void lost_with_two_bases() { seen(new_derived()); }
KEEP_CALL void held_by_second_bases_in_a_vector() {
    auto *vector = new std::vector<Second *>;
    vector->reserve(5);
    for (int i = 0; i < 5; i++) vector->push_back(new_derived());
    held[0] = vector;
}
// The second base of an object that is itself inside another: no vtable at the block's start.
struct Outer {
    long payload[2] = {};
    Derived derived;
};
KEEP_CALL void held_by_the_second_base_of_a_member() { held[0] = static_cast<Second *>(&(new Outer)->derived); }

// Strings and containers.

KEEP_CALL void lost_long_string() { seen(new std::string(300, 's')); }
KEEP_CALL void lost_short_string() { seen(new std::string("short")); }
KEEP_CALL void held_long_string() { held[0] = new std::string(300, 's'); }
KEEP_CALL void held_text_of_a_lost_string() { held[0] = seen(new std::string(300, 's'))->data(); }
KEEP_CALL void lost_vector() { seen(new std::vector<long>(100)); }
KEEP_CALL void lost_vector_of_strings() { seen(new std::vector<std::string>(10, std::string(50, 'v'))); }
KEEP_CALL void held_end_of_a_vector() { held[0] = &seen(new std::vector<long>(100))->back(); }
KEEP_CALL void lost_map() {
    auto *map = seen(new std::map<int, std::string>);
    for (int i = 0; i < 50; i++) map->emplace(i, std::string(100, 'm'));
}
KEEP_CALL void held_map() {
    auto *map = new std::map<int, std::string>;
    for (int i = 0; i < 50; i++) map->emplace(i, std::string(100, 'm'));
    held[0] = map;
}
// The tree's header lies inside the object, so the root's node leads back into it.
KEEP_CALL void held_node_of_a_lost_map() {
    auto *map = new std::map<int, long>;
    for (int i = 0; i < 10; i++) map->emplace(i, i);
    held[0] = &*map->begin();
}
KEEP_CALL void lost_unordered_map() {
    auto *map = new std::unordered_map<int, std::string>;
    map->reserve(50);
    for (int i = 0; i < 50; i++) map->emplace(i, std::string(100, 'u'));
    seen(map);
}
KEEP_CALL void lost_list() { seen(new std::list<long>(20)); }
KEEP_CALL void held_iterator_of_a_lost_list() {
    auto *list = new std::list<long>(20);
    held[0] = &list->back();
}
KEEP_CALL void lost_deque() {
    auto *deque = new std::deque<long>;
    for (int i = 0; i < 300; i++) deque->push_back(i);
    seen(deque);
}
KEEP_CALL void lost_function() {
    struct Captured {
        char bytes[80];
    } captured = {};
    seen(new std::function<size_t()>([captured] { return sizeof captured.bytes; }));
}
KEEP_CALL void lost_any() { seen(new std::any(std::string(100, 'a'))); }
KEEP_CALL void held_monotonic_buffer() {
    auto *buffer = new std::pmr::monotonic_buffer_resource(1000);
    held[0] = memset(buffer->allocate(600), 0, 600);
    held[1] = buffer;
}
KEEP_CALL void lost_monotonic_buffer() {
    auto *buffer = seen(new std::pmr::monotonic_buffer_resource(1000));
    for (int i = 0; i < 5; i++) memset(buffer->allocate(600), 0, 600);
}

// Smart pointers.

struct Peer {
    std::shared_ptr<Peer> other;
    std::unique_ptr<Node> owned;
    ~Peer() { other.reset(); }
};
KEEP_CALL void cycle_of_shared_pointers() {
    auto one = std::make_shared<Peer>(), two = std::make_shared<Peer>();
    one->other = two;
    two->other = one;
}
KEEP_CALL void cycle_of_shared_pointers_that_own() {
    auto one = std::make_shared<Peer>(), two = std::make_shared<Peer>();
    one->owned.reset(new Node(nullptr));
    one->other = two;
    two->other = one;
}
KEEP_CALL void held_cycle_of_shared_pointers() {
    auto one = std::make_shared<Peer>(), two = std::make_shared<Peer>();
    one->other = two;
    two->other = one;
    held[0] = new std::shared_ptr<Peer>(one);
}
KEEP_CALL void raw_pointer_into_a_shared_one() {
    held[0] = seen(new std::shared_ptr<Peer>(std::make_shared<Peer>()))->get();
}
KEEP_CALL void lost_shared_pointer_with_its_own_counter() {
    seen(new std::shared_ptr<Node>(new Node(new_list(2))));
}
KEEP_CALL void released_unique_pointer() { seen(std::make_unique<Node>(new_list(2)).release()); }

// Exceptions and coroutines: the blocks begin with what belongs to the runtime.

KEEP_CALL void held_exception() {
    alignas(std::exception_ptr) static char never_destroyed[sizeof(std::exception_ptr)];
    new (keep(never_destroyed)) std::exception_ptr(std::make_exception_ptr(Third()));
}
KEEP_CALL void lost_exception() { new (seen(new std::exception_ptr)) std::exception_ptr(std::make_exception_ptr(Third())); }

struct Task {
    struct promise_type {
        Task get_return_object() { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
        std::suspend_always initial_suspend() noexcept { return {}; }
        std::suspend_always final_suspend() noexcept { return {}; }
        void return_void() {}
        void unhandled_exception() {}
    };
    std::coroutine_handle<promise_type> handle;
};
static Task wait_with(Node *list) {
    co_await std::suspend_always();
    keep(list);
}
KEEP_CALL void *suspended() {
    Task task = wait_with(new_list(2));
    task.handle.resume();
    return task.handle.address();
}
KEEP_CALL void held_coroutine() { held[0] = suspended(); }
KEEP_CALL void lost_coroutine() { keep(suspended()); }

// Threads.

KEEP_CALL void detach_a_thread_that_holds() {
    std::thread([list = std::unique_ptr<Node>(new Node(nullptr))] {
        seen(list.get());
        rest();
    }).detach();
}
KEEP_CALL void held_by_a_detached_thread() {
    detach_a_thread_that_holds();
    while (!resting) usleep(500);
}
KEEP_CALL void fill_a_thread_local() {
    thread_local std::vector<std::string> words;
    words.reserve(5);
    for (int i = 0; i < 5; i++) words.push_back(std::string(100, 't'));
}
KEEP_CALL void thread_local_vector_of_the_main_thread() { fill_a_thread_local(); }
KEEP_CALL void detach_a_thread_with_thread_locals() {
    std::thread([] {
        fill_a_thread_local();
        rest();
    }).detach();
}
KEEP_CALL void thread_local_vector_of_a_detached_thread() {
    detach_a_thread_with_thread_locals();
    while (!resting) usleep(500);
}
KEEP_CALL void thread_local_vector_of_an_ended_thread() {
    std::thread([] {
        fill_a_thread_local();
        clear_traces();
    }).join();
}

// Objects of static lifetime.

KEEP_CALL void static_vector_destroyed_at_exit() {
    static std::vector<std::string> words(5, std::string(100, 's'));
    seen(words.data());
}
KEEP_CALL void static_vector_at_a_quick_exit() {
    static std::vector<std::string> words(5, std::string(100, 's'));
    seen(words.data());
    clear_traces();
    quick_exit(0);
}
struct Losing {
    std::vector<std::string> *volatile words = new std::vector<std::string>(5, std::string(100, 'l'));
    ~Losing() { words = nullptr; }
};
KEEP_CALL void lost_by_a_static_destructor() {
    static Losing losing;
    keep(losing.words);
}

static const struct shape shapes[] = {
    SHAPE(lost_object), // definite=32/1 indirect=96/3
    SHAPE(held_object), // reachable=128/4
    SHAPE(lost_array), // definite=240/1
    SHAPE(lost_overaligned_object), // definite=256/1 indirect=64/2
    SHAPE(held_overaligned_object), // reachable=320/3
    SHAPE(held_inside_an_overaligned_object), // possible=320/3
    SHAPE(array_with_a_cookie_held), // reachable=584/4
    SHAPE(array_with_a_cookie_lost), // definite=488/1 indirect=96/3
    SHAPE(array_with_a_cookie_held_by_its_second_element), // possible=584/4
    SHAPE(empty_array_with_a_cookie_held), // definite=8/1
    SHAPE(array_with_a_cookie_in_a_lost_object), // definite=32/1 indirect=584/4
    SHAPE(array_with_a_padded_cookie_held), // possible=336/1
    SHAPE(held_by_the_first_base), // reachable=104/3
    SHAPE(held_by_the_second_base), // reachable=104/3
    SHAPE(held_by_a_base_without_virtual_functions), // possible=104/3
    SHAPE(held_by_a_virtual_base), // reachable=48/1
    SHAPE(lost_with_two_bases), // definite=40/1 indirect=64/2
    SHAPE(held_by_second_bases_in_a_vector), // reachable=584/17
    SHAPE(held_by_the_second_base_of_a_member), // possible=56/1
    SHAPE(lost_long_string), // definite=32/1 indirect=301/1
    SHAPE(lost_short_string), // definite=32/1
    SHAPE(held_long_string), // reachable=333/2
    SHAPE(held_text_of_a_lost_string), // definite=32/1 reachable=301/1
    SHAPE(lost_vector), // definite=24/1 indirect=800/1
    SHAPE(lost_vector_of_strings), // definite=24/1 indirect=830/11
    SHAPE(held_end_of_a_vector), // definite=24/1 possible=800/1
    SHAPE(lost_map), // definite=48/1 indirect=8650/100
    SHAPE(held_map), // reachable=8698/101
    SHAPE(held_node_of_a_lost_map), // possible=528/11
    SHAPE(lost_unordered_map), // definite=56/1 indirect=?/101
    SHAPE(lost_list), // definite=24/1 indirect=480/20
    SHAPE(held_iterator_of_a_lost_list), // possible=504/21
    SHAPE(lost_deque), // definite=80/1 indirect=2624/6
    SHAPE(lost_function), // definite=32/1 indirect=80/1
    SHAPE(lost_any), // definite=16/1 indirect=133/2
    SHAPE(held_monotonic_buffer), // reachable=?/2
    SHAPE(lost_monotonic_buffer), // definite=64/1 indirect=?/3
    SHAPE(cycle_of_shared_pointers), // definite=40/1 indirect=40/1
    SHAPE(cycle_of_shared_pointers_that_own), // definite=40/1 indirect=72/2
    SHAPE(held_cycle_of_shared_pointers), // reachable=96/3
    SHAPE(raw_pointer_into_a_shared_one), // definite=16/1 possible=40/1
    SHAPE(lost_shared_pointer_with_its_own_counter), // definite=16/1 indirect=120/4
    SHAPE(released_unique_pointer), // definite=32/1 indirect=64/2
    SHAPE(held_exception), // possible=136/1
    SHAPE(lost_exception), // definite=8/1 indirect=136/1
    SHAPE(held_coroutine), // reachable=?/3
    SHAPE(lost_coroutine), // definite=?/1 indirect=64/2
    SHAPE(held_by_a_detached_thread), // reachable=?/2
    SHAPE(thread_local_vector_of_the_main_thread), // nothing
    // The C library allocates the note of the destructor for itself: it is in memcheck's count only.
    SHAPE(thread_local_vector_of_a_detached_thread), // reachable=?
    SHAPE(thread_local_vector_of_an_ended_thread), // nothing
    SHAPE(static_vector_destroyed_at_exit), // nothing
    SHAPE(static_vector_at_a_quick_exit), // reachable=665/6
    SHAPE(lost_by_a_static_destructor), // definite=24/1 indirect=665/6
};

#endif

int main(int argc, char **argv) {
    // What is freed is overwritten: the unused ends of containers must not hold pointers of before by chance.
    mallopt(M_PERTURB, 0x55);
    return run_shape(shapes, sizeof shapes / sizeof *shapes, argc, argv);
}
