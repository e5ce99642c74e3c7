// Shapes of memory held by threads (stacks, registers, thread-local storage, keys), and of ways in which a process ends: what
// `leakscope leaks` says of each must be what memcheck says.
#include "shapes.h"

struct node {
    struct node *next;
    long payload[3];
};

static void *volatile held[4];

KEEP_CALL struct node *new_node(void) {
    return BLOCK(sizeof(struct node));
}

KEEP_CALL struct node *new_list(int length) {
    struct node *head = NULL;
    for (int i = 0; i < length; i++) {
        struct node *node = new_node();
        node->next = head;
        head = node;
    }
    return head;
}

KEEP_CALL void lose_list(void) { keep(new_list(5)); }
KEEP_CALL void put_list(void *volatile *where) { *where = new_list(5); }
KEEP_CALL void put_interior_pointer(void *volatile *where) { *where = &new_list(5)->payload[1]; }
KEEP_CALL void lose_and_hold(void) {
    lose_list();
    held[0] = new_list(3);
}

// Stacks.

KEEP_CALL void held_by_the_main_stack(void) {
    void *volatile local[4] = {NULL, NULL, NULL, NULL};
    put_list(&local[2]);
    end_here();
}

KEEP_CALL void held_inside_by_the_main_stack(void) {
    void *volatile local[4] = {NULL, NULL, NULL, NULL};
    put_interior_pointer(&local[2]);
    end_here();
}

static void *rest_with_a_list(void *argument) {
    void *volatile local[4] = {NULL, NULL, NULL, NULL};
    put_list(&local[2]);
    rest();
    return argument;
}
KEEP_CALL void held_by_another_stack(void) { start_and_await_rest(rest_with_a_list); }

static void *rest_with_an_interior_pointer(void *argument) {
    void *volatile local[4] = {NULL, NULL, NULL, NULL};
    put_interior_pointer(&local[2]);
    rest();
    return argument;
}
KEEP_CALL void held_inside_by_another_stack(void) { start_and_await_rest(rest_with_an_interior_pointer); }

static void *rest_after_losing(void *argument) {
    lose_list();
    rest();
    return argument;
}
KEEP_CALL void lost_by_a_resting_thread(void) { start_and_await_rest(rest_after_losing); }

KEEP_CALL void write_deep_in_the_stack(void) {
    void *volatile deep[32768];
    for (int i = 0; i < 32768; i++) deep[i] = NULL;
    for (int i = 0; i < 64; i++) deep[i] = new_node();
    keep((void *)deep);
}
static void *rest_above_dead_slots(void *argument) {
    write_deep_in_the_stack();
    rest();
    return argument;
}
KEEP_CALL void dead_slots_of_another_stack(void) { start_and_await_rest(rest_above_dead_slots); }

static void *end_after_losing(void *argument) {
    lose_list();
    clear_traces();
    return argument;
}
KEEP_CALL void lost_by_an_ended_thread(void) { start_and_join(end_after_losing); }

// Deep enough that the thread's own end does not overwrite it, and not so deep that glibc gives the pages back.
KEEP_CALL void write_in_the_stack(void) {
    void *volatile local[1000];
    for (int i = 0; i < 1000; i++) local[i] = NULL;
    put_list(&local[2]);
}
static void *end_with_a_list(void *argument) {
    write_in_the_stack();
    return argument;
}
KEEP_CALL void held_by_the_stack_of_an_ended_thread(void) { start_and_join(end_with_a_list); }

static void *lose_in_an_arena(void *argument) {
    static int ready;
    for (int i = 0; i < 100; i++) lose_list();
    clear_traces();
    if (__atomic_add_fetch(&ready, 1, __ATOMIC_SEQ_CST) == 4) rest();
    for (;;) pause();
    return argument;
}
KEEP_CALL void lost_in_four_arenas(void) {
    pthread_t thread;
    for (int i = 0; i < 3; i++) check(pthread_create(&thread, NULL, lose_in_an_arena, NULL) == 0);
    start_and_await_rest(lose_in_an_arena);
}

// A list whose nodes come from two arenas in turn.
static struct node *volatile across;
static void *prepend_a_node(void *argument) {
    struct node *node = new_node();
    node->next = across;
    across = node;
    clear_traces();
    return argument;
}
KEEP_CALL void build_across_arenas(void) {
    for (int i = 0; i < 4; i++) {
        start_and_join(prepend_a_node);
        prepend_a_node(NULL);
    }
}
KEEP_CALL void held_across_arenas(void) { build_across_arenas(); }
KEEP_CALL void lost_across_arenas(void) {
    build_across_arenas();
    across = NULL;
}

// Registers. Assembler, since a compiler may keep copies anywhere.

__attribute__((used, noinline)) static uintptr_t hidden_list(void) { return ~(uintptr_t)new_list(5); }

void rest_with_a_register(void), rest_with_a_vector_register(void);
void exit_with_a_register(void), exit_with_a_red_zone(void);
__asm__(".text\n"
        ".macro with_a_register name\n"
        ".type \\name, @function\n"
        "\\name:\n"
        ".cfi_startproc\n"
        "    sub $8, %rsp\n"
        ".cfi_adjust_cfa_offset 8\n"
        "    call hidden_list\n"
        "    mov %rax, %r12\n"
        "    call clear_traces\n"
        "    not %r12\n"
        ".endm\n"
        ".macro rest\n"
        "    movl $1, resting(%rip)\n"
        "1:  mov $34, %eax\n" // pause
        "    syscall\n"
        "    jmp 1b\n"
        ".endm\n"

        "with_a_register rest_with_a_register\n"
        "    rest\n"
        ".cfi_endproc\n"

        "with_a_register rest_with_a_vector_register\n"
        "    movq %r12, %xmm7\n"
        "    xor %r12d, %r12d\n"
        "    rest\n"
        ".cfi_endproc\n"

        "with_a_register exit_with_a_register\n"
        "    xor %edi, %edi\n"
        "    call _exit@PLT\n"
        "    hlt\n"
        ".cfi_endproc\n"

        "with_a_register exit_with_a_red_zone\n"
        "    mov %r12, -64(%rsp)\n"
        "    xor %r12d, %r12d\n"
        "    xor %edi, %edi\n"
        "    mov $231, %eax\n" // exit_group
        "    syscall\n"
        "    hlt\n"
        ".cfi_endproc\n");

static void *run_with_a_register(void *argument) {
    rest_with_a_register();
    return argument;
}
static void *run_with_a_vector_register(void *argument) {
    rest_with_a_vector_register();
    return argument;
}
KEEP_CALL void held_by_a_vector_register_of_another_thread(void) { start_and_await_rest(run_with_a_vector_register); }
KEEP_CALL void held_by_a_register(void) { exit_with_a_register(); }
KEEP_CALL void held_by_a_register_of_another_thread(void) { start_and_await_rest(run_with_a_register); }
KEEP_CALL void held_in_the_red_zone(void) { exit_with_a_red_zone(); }

// Thread-local storage and keys.

static __thread void *volatile local_holder;

KEEP_CALL void held_by_a_thread_local(void) { put_list(&local_holder); }

static void *rest_with_a_thread_local(void *argument) {
    put_list(&local_holder);
    rest();
    return argument;
}
KEEP_CALL void held_by_a_thread_local_of_another_thread(void) { start_and_await_rest(rest_with_a_thread_local); }

static void *end_with_a_thread_local(void *argument) {
    put_list(&local_holder);
    clear_traces();
    return argument;
}
KEEP_CALL void held_by_a_thread_local_of_an_ended_thread(void) { start_and_join(end_with_a_thread_local); }

static pthread_key_t key;

KEEP_CALL void set_key(void) { check(pthread_setspecific(key, new_list(5)) == 0); }
KEEP_CALL void set_high_key(void) {
    for (int i = 0; i < 100; i++) check(pthread_key_create(&key, NULL) == 0);
    set_key();
}
KEEP_CALL void held_by_a_key(void) {
    check(pthread_key_create(&key, NULL) == 0);
    set_key();
}
KEEP_CALL void held_by_a_high_key(void) { set_high_key(); }

static void *rest_with_a_key(void *argument) {
    set_key();
    rest();
    return argument;
}
KEEP_CALL void held_by_a_key_of_another_thread(void) {
    check(pthread_key_create(&key, NULL) == 0);
    start_and_await_rest(rest_with_a_key);
}

static void *rest_with_a_high_key(void *argument) {
    set_high_key();
    rest();
    return argument;
}
KEEP_CALL void held_by_a_high_key_of_another_thread(void) { start_and_await_rest(rest_with_a_high_key); }

static void *end_with_a_key(void *argument) {
    set_key();
    clear_traces();
    return argument;
}
KEEP_CALL void lost_with_the_key_of_an_ended_thread(void) {
    check(pthread_key_create(&key, NULL) == 0);
    start_and_join(end_with_a_key);
}

KEEP_CALL void freed_by_the_key_of_an_ended_thread(void) {
    check(pthread_key_create(&key, free) == 0);
    start_and_join(end_with_a_key);
}

static volatile pid_t ended;
static void *end_with_a_result(void *argument) {
    (void)argument;
    struct node *result = new_list(5);
    clear_traces();
    __atomic_store_n(&ended, gettid(), __ATOMIC_SEQ_CST);
    return result;
}
KEEP_CALL void held_by_the_result_of_an_unjoined_thread(void) {
    pthread_t thread;
    check(pthread_create(&thread, NULL, end_with_a_result, NULL) == 0);
    char task[64];
    do {
        usleep(500);
        snprintf(task, sizeof task, "/proc/self/task/%d", ended);
    } while (ended == 0 || access(task, F_OK) == 0);
}

// Ends.

KEEP_CALL void end_by_return(void) { lose_and_hold(); }
KEEP_CALL void end_by_exit(void) {
    lose_and_hold();
    end_here();
}
KEEP_CALL void end_by_underscore_exit(void) {
    lose_and_hold();
    clear_traces();
    _exit(0);
}
KEEP_CALL void end_by_quick_exit(void) {
    lose_and_hold();
    clear_traces();
    quick_exit(0);
}

static void free_held_list(void) {
    for (struct node *node = (struct node *)held[0], *next; node; node = next) {
        next = node->next;
        free(node);
    }
    held[0] = NULL;
}
KEEP_CALL void end_by_exit_that_frees(void) {
    lose_and_hold();
    check(atexit(free_held_list) == 0);
    end_here();
}
KEEP_CALL void end_by_underscore_exit_that_does_not_free(void) {
    lose_and_hold();
    check(atexit(free_held_list) == 0);
    clear_traces();
    _exit(0);
}
KEEP_CALL void end_by_quick_exit_that_frees(void) {
    lose_and_hold();
    check(at_quick_exit(free_held_list) == 0);
    clear_traces();
    quick_exit(0);
}
static void lose_held_list(void) {
    held[0] = NULL;
    clear_traces();
}
KEEP_CALL void end_by_exit_that_loses(void) {
    lose_and_hold();
    check(atexit(lose_held_list) == 0);
    end_here();
}

static void *outlive_main(void *argument) {
    while (!__atomic_load_n(&resting, __ATOMIC_SEQ_CST)) usleep(500);
    usleep(20000);
    clear_traces();
    return argument;
}
KEEP_CALL void end_by_the_last_thread(void) {
    pthread_t thread;
    lose_and_hold();
    check(pthread_create(&thread, NULL, outlive_main, NULL) == 0 && pthread_detach(thread) == 0);
    clear_traces();
    __atomic_store_n(&resting, 1, __ATOMIC_SEQ_CST);
    pthread_exit(NULL);
}

static void *exit_from_here(void *argument) {
    while (!__atomic_load_n(&resting, __ATOMIC_SEQ_CST)) usleep(500);
    end_here();
    return argument;
}
KEEP_CALL void end_by_another_thread(void) {
    pthread_t thread;
    lose_and_hold();
    void *volatile local[4] = {NULL, NULL, NULL, NULL};
    put_list(&local[2]);
    check(pthread_create(&thread, NULL, exit_from_here, NULL) == 0);
    clear_traces();
    __atomic_store_n(&resting, 1, __ATOMIC_SEQ_CST);
    pthread_join(thread, NULL);
}

static const struct shape shapes[] = {
    SHAPE(held_by_the_main_stack), // reachable=160/5
    SHAPE(held_inside_by_the_main_stack), // possible=160/5
    SHAPE(held_by_another_stack), // reachable=160/5
    SHAPE(held_inside_by_another_stack), // possible=160/5
    SHAPE(lost_by_a_resting_thread), // definite=32/1 indirect=128/4
    SHAPE(dead_slots_of_another_stack), // definite=2048/64
    SHAPE(lost_by_an_ended_thread), // definite=32/1 indirect=128/4
    SHAPE(held_by_the_stack_of_an_ended_thread), // definite=32/1 indirect=128/4
    SHAPE(lost_in_four_arenas), // definite=12800/400 indirect=51200/1600
    SHAPE(held_across_arenas), // reachable=256/8
    SHAPE(lost_across_arenas), // definite=32/1 indirect=224/7
    SHAPE(held_by_a_vector_register_of_another_thread), // reachable=160/5 memcheck: definite=32/1 indirect=128/4
    SHAPE(held_by_a_register), // reachable=160/5 memcheck: definite=32/1 indirect=128/4
    SHAPE(held_by_a_register_of_another_thread), // reachable=160/5
    SHAPE(held_in_the_red_zone), // reachable=160/5
    SHAPE(held_by_a_thread_local), // reachable=160/5
    SHAPE(held_by_a_thread_local_of_another_thread), // reachable=160/5
    SHAPE(held_by_a_thread_local_of_an_ended_thread), // definite=32/1 indirect=128/4 memcheck: reachable=160/5
    SHAPE(held_by_a_key), // reachable=160/5
    SHAPE(held_by_a_high_key), // reachable=?
    SHAPE(held_by_a_key_of_another_thread), // reachable=160/5
    SHAPE(held_by_a_high_key_of_another_thread), // reachable=?
    SHAPE(lost_with_the_key_of_an_ended_thread), // definite=32/1 indirect=128/4
    SHAPE(freed_by_the_key_of_an_ended_thread), // definite=32/1 indirect=96/3
    SHAPE(held_by_the_result_of_an_unjoined_thread), // reachable=160/5
    SHAPE(end_by_return), // definite=32/1 indirect=128/4 reachable=96/3
    SHAPE(end_by_exit), // definite=32/1 indirect=128/4 reachable=96/3
    SHAPE(end_by_underscore_exit), // definite=32/1 indirect=128/4 reachable=96/3
    SHAPE(end_by_quick_exit), // definite=32/1 indirect=128/4 reachable=96/3
    SHAPE(end_by_exit_that_frees), // definite=32/1 indirect=128/4
    SHAPE(end_by_underscore_exit_that_does_not_free), // definite=32/1 indirect=128/4 reachable=96/3
    SHAPE(end_by_quick_exit_that_frees), // definite=32/1 indirect=128/4
    SHAPE(end_by_exit_that_loses), // definite=64/2 indirect=192/6
    SHAPE(end_by_the_last_thread), // definite=32/1 indirect=128/4 reachable=?
    SHAPE(end_by_another_thread), // definite=32/1 indirect=128/4 reachable=256/8
};

int main(int argc, char **argv) {
    return run_shape(shapes, sizeof shapes / sizeof *shapes, argc, argv);
}
