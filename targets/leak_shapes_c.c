// Shapes of lost and held memory in C: what `leakscope leaks` says of each must be what memcheck says.
// Shapes of threads, registers and process ends: leak_shapes_threads.c.
#include "shapes.h"
#include <malloc.h>
#include <sys/mman.h>

struct node {
    struct node *next, *other;
    long payload[2];
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

KEEP_CALL struct node *new_ring(int length) {
    struct node *first = new_list(length), *last = first;
    while (last->next) last = last->next;
    last->next = first;
    return first;
}

KEEP_CALL struct node *new_tree(int depth) {
    if (depth == 0) return NULL;
    struct node *node = new_node();
    node->next = new_tree(depth - 1);
    node->other = new_tree(depth - 1);
    return node;
}

// Lost structures.

KEEP_CALL void lost_block(void) { keep(BLOCK(100)); }
KEEP_CALL void lost_list(void) { keep(new_list(10)); }
KEEP_CALL void lost_ring_of_one(void) { keep(new_ring(1)); }
KEEP_CALL void lost_ring_of_two(void) { keep(new_ring(2)); }
KEEP_CALL void lost_ring_of_three(void) { keep(new_ring(3)); }
KEEP_CALL void lost_tree(void) { keep(new_tree(4)); }

// The ring's leader is the block with the lowest address, here the oldest. A later leader absorbs it only by pointing to it:
// here two blocks are definitely lost, in the next two shapes one.
KEEP_CALL void lost_ring_with_a_tail(void) {
    struct node *ring = new_ring(3);
    struct node *tail = new_list(2);
    tail->next->next = ring;
}

KEEP_CALL void lost_ring_with_a_tail_to_its_oldest(void) {
    struct node *ring = new_ring(3);
    struct node *tail = new_list(2);
    tail->next->next = ring->next->next;
}

KEEP_CALL void lost_ring_with_an_older_tail(void) {
    struct node *tail = new_list(2);
    tail->next->next = new_ring(3);
}

KEEP_CALL void lost_doubly_linked_list(void) {
    struct node *head = new_list(5);
    for (struct node *node = head; node->next; node = node->next) node->next->other = node;
}

KEEP_CALL void lost_heads_share_a_list(void) {
    struct node *shared = new_list(3), *one = new_node(), *two = new_node();
    one->next = two->next = shared;
}

KEEP_CALL void lost_list_ends_in_a_held_one(void) {
    struct node *kept = new_list(3), *lost = new_list(2);
    lost->next->next = kept;
    held[0] = kept;
}

KEEP_CALL void lost_sizes(void) {
    for (size_t size = 1; size <= 3000; size += size / 8 + 1) keep(BLOCK(size));
}

KEEP_CALL void lost_list_linked_by_xor(void) {
    struct node *previous = NULL;
    for (int i = 0; i < 4; i++) {
        struct node *node = new_node();
        node->payload[0] = ~(long)previous;
        previous = node;
    }
}

KEEP_CALL void lost_strings(void) {
    keep(strdup("written on water"));
    char *text = NULL;
    check(asprintf(&text, "%d", 12345) == 5);
}

// Held structures.

KEEP_CALL void held_block(void) { held[0] = BLOCK(100); }
KEEP_CALL void held_list(void) { held[0] = new_list(10); }
KEEP_CALL void held_ring(void) { held[0] = new_ring(3); }
KEEP_CALL void held_tree(void) { held[0] = new_tree(4); }
KEEP_CALL void held_in_the_middle_of_a_ring(void) { held[0] = new_ring(5)->next->next; }
KEEP_CALL void held_in_the_middle_of_a_list(void) { held[0] = new_list(5)->next->next; }

KEEP_CALL void held_by_anonymous_mapping(void) {
    void **page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(page != MAP_FAILED);
    page[100] = new_list(3);
}

KEEP_CALL void held_by_shared_mapping(void) {
    int descriptor = memfd_create("shared", 0);
    check(descriptor >= 0 && ftruncate(descriptor, 4096) == 0);
    void **page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    check(page != MAP_FAILED && close(descriptor) == 0);
    page[100] = new_list(3);
}

KEEP_CALL void held_by_read_only_mapping(void) {
    void **page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(page != MAP_FAILED);
    page[100] = new_list(3);
    check(mprotect(page, 4096, PROT_READ) == 0);
}

KEEP_CALL void held_by_inaccessible_mapping(void) {
    void **page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(page != MAP_FAILED);
    page[100] = new_list(3);
    check(mprotect(page, 4096, PROT_NONE) == 0);
}

KEEP_CALL void held_by_stdio(void) {
    check(setvbuf(stderr, BLOCK(1024), _IOFBF, 1024) == 0);
}

KEEP_CALL void held_by_the_environment(void) {
    char *variable = BLOCK(32);
    memcpy(variable, "SHAPE=1", 8);
    check(putenv(variable) == 0);
}

// Interior pointers.

KEEP_CALL void interior_pointer(void) { held[0] = (char *)BLOCK(100) + 32; }
KEEP_CALL void interior_pointer_to_last_byte(void) { held[0] = (char *)BLOCK(97) + 96; }
KEEP_CALL void pointer_past_the_end(void) { held[0] = (char *)BLOCK(96) + 96; }
KEEP_CALL void pointer_before_the_start(void) { held[0] = (char *)BLOCK(96) - 8; }
KEEP_CALL void interior_pointer_to_a_list(void) { held[0] = &new_list(10)->payload[1]; }
KEEP_CALL void interior_pointer_to_a_ring(void) { held[0] = &new_ring(3)->payload[1]; }

KEEP_CALL void interior_pointer_in_a_held_list(void) {
    struct node *list = new_list(4);
    list->next->next = (struct node *)&list->next->next->payload[1];
    held[0] = list;
}

KEEP_CALL void interior_pointer_in_a_lost_block(void) {
    struct node *node = new_node();
    node->next = (struct node *)&new_list(3)->payload[1];
}

KEEP_CALL void interior_pointer_to_a_held_tail(void) {
    struct node *list = new_list(6);
    held[0] = &list->payload[1];
    held[1] = list->next->next->next;
}

KEEP_CALL void start_pointer_after_an_interior_one(void) {
    struct node *list = new_list(5);
    held[0] = &list->payload[1];
    held[1] = list;
}

KEEP_CALL void start_pointer_before_an_interior_one(void) {
    struct node *list = new_list(5);
    held[0] = list;
    held[1] = &list->payload[1];
}

// The first way to the list found is the long one by an interior pointer, the last a chain of start pointers.
KEEP_CALL void start_pointer_found_through_a_chain(void) {
    struct node *list = new_list(5), *chain = new_list(3);
    chain->next->next->next = list;
    held[0] = &list->payload[1];
    held[3] = chain;
}

KEEP_CALL void unaligned_pointer(void) {
    static char unaligned[32];
    struct node *list = new_list(3);
    memcpy(unaligned + 3, &list, sizeof list);
    keep(unaligned);
}

KEEP_CALL void unaligned_pointer_in_a_held_block(void) {
    char *block = BLOCK(64);
    struct node *list = new_list(3);
    memcpy(block + 12, &list, sizeof list);
    held[0] = block;
}

KEEP_CALL void tagged_pointer(void) { held[0] = (char *)new_list(3) + 1; }
KEEP_CALL void pointer_tagged_in_its_high_bits(void) { held[0] = (void *)((uintptr_t)new_list(3) | 5ull << 56); }

// As sqlite does it: the block's size before what the program sees.
KEEP_CALL void length_before_the_pointer(void) {
    uint64_t *block = BLOCK(8 + 200);
    block[0] = 200;
    held[0] = block + 1;
}

KEEP_CALL void wrong_length_before_the_pointer(void) {
    uint64_t *block = BLOCK(8 + 200);
    block[0] = 193;
    held[0] = block + 1;
}

KEEP_CALL void length_before_a_list(void) {
    uint64_t *block = BLOCK(8 + 32);
    block[0] = 32;
    block[2] = (uint64_t)new_list(3);
    held[0] = block + 1;
}

// A pool hands out parts of one block.
KEEP_CALL void pool_held_by_its_start(void) {
    struct node *pool = zeroed(calloc(64, sizeof *pool), 64 * sizeof *pool);
    pool[40].next = new_list(2);
    held[0] = pool;
}

KEEP_CALL void pool_held_by_a_part(void) {
    struct node *pool = zeroed(calloc(64, sizeof *pool), 64 * sizeof *pool);
    pool[40].next = new_list(2);
    held[0] = &pool[20];
}

KEEP_CALL void pool_lost_with_its_parts_linked(void) {
    struct node *pool = zeroed(calloc(64, sizeof *pool), 64 * sizeof *pool);
    for (int i = 0; i < 63; i++) pool[i].next = &pool[i + 1];
}

// Sizes and alignments.

KEEP_CALL void zero_size_lost(void) { keep(malloc(0)); }
KEEP_CALL void zero_size_held(void) { held[0] = keep(malloc(0)); }
KEEP_CALL void zero_size_held_by_a_lost_block(void) { new_node()->next = keep(malloc(0)); }
KEEP_CALL void zero_size_past_its_start(void) { held[0] = (char *)keep(malloc(0)) + 8; }
KEEP_CALL void one_byte_held(void) { held[0] = BLOCK(1); }
KEEP_CALL void one_byte_past_its_start(void) { held[0] = (char *)BLOCK(1) + 1; }

KEEP_CALL void *aligned(size_t alignment, size_t size) {
    void *block = NULL;
    check(posix_memalign(&block, alignment, size) == 0);
    return zeroed(block, size);
}

KEEP_CALL void aligned_64_lost(void) { keep(aligned(64, 1000)); }
KEEP_CALL void aligned_64_held(void) { held[0] = aligned(64, 1000); }
KEEP_CALL void aligned_4096_lost(void) { keep(aligned(4096, 100)); }
KEEP_CALL void aligned_4096_held(void) { held[0] = aligned(4096, 100); }
KEEP_CALL void aligned_4096_held_inside(void) { held[0] = (char *)aligned(4096, 100) + 64; }

KEEP_CALL void aligned_block_before_its_start(void) {
    held[0] = (char *)aligned(4096, 100) - 64; // in the chunk that was cut to align it, not in the block
}

KEEP_CALL void aligned_variants_lost(void) {
    keep(zeroed(aligned_alloc(128, 256), 256));
    keep(zeroed(memalign(256, 300), 300));
}

// Enough for a mapping of its own, little enough that no number of memcheck's low addresses leads into it by chance.
enum { HUGE = 256 << 10 };

KEEP_CALL void huge_lost(void) { keep(BLOCK(HUGE)); }
KEEP_CALL void huge_held(void) { held[0] = BLOCK(HUGE); }
KEEP_CALL void huge_held_inside(void) { held[0] = (char *)BLOCK(HUGE) + HUGE / 2; }
KEEP_CALL void huge_aligned_lost(void) { keep(aligned(1 << 16, HUGE)); }
KEEP_CALL void huge_aligned_held(void) { held[0] = aligned(1 << 16, HUGE); }
KEEP_CALL void huge_aligned_held_inside(void) { held[0] = (char *)aligned(1 << 16, HUGE) + (1 << 16); }

KEEP_CALL void huge_holds_a_list(void) {
    struct node **block = BLOCK(HUGE);
    block[HUGE / 8 - 1] = new_list(3);
    held[0] = block;
}

KEEP_CALL void huge_lost_with_a_list(void) {
    struct node **block = BLOCK(HUGE);
    block[HUGE / 16] = new_list(3);
}

// Blocks that moved or were freed.

// Grown until it must have moved; the pointer to where it was remains.
KEEP_CALL void moved_and_lost(void) {
    void *block = BLOCK(24);
    held[1] = new_node();
    held[0] = block;
    void *moved = realloc(block, 5000);
    check(moved != held[0]);
    keep(memset(moved, 0, 5000));
}

KEEP_CALL void moved_and_held(void) {
    void *block = BLOCK(24);
    held[1] = new_node();
    held[0] = realloc(block, 5000);
    check(held[0] != block);
    memset(held[0], 0, 5000);
}

KEEP_CALL void grown_by_remapping_and_lost(void) { keep(memset(realloc(BLOCK(HUGE), 4 * HUGE), 0, 4 * HUGE)); }
KEEP_CALL void grown_by_remapping_and_held(void) { held[0] = memset(realloc(BLOCK(HUGE), 4 * HUGE), 0, 4 * HUGE); }

KEEP_CALL void shrunk_away_from_the_pointer(void) {
    char *block = realloc(BLOCK(1000), 100);
    held[0] = block + 500;
}

KEEP_CALL void shrunk_away_from_its_contents(void) {
    struct node **block = BLOCK(1000);
    block[100] = new_list(3);
    held[0] = realloc(block, 100);
}

KEEP_CALL void freed_holder(void) {
    struct node *holder = new_node();
    holder->payload[1] = (long)new_list(3);
    held[0] = holder;
    free(holder);
}

KEEP_CALL void freed_large_holder(void) {
    void **holder = BLOCK(100000);
    void *between = BLOCK(24);
    holder[6000] = new_list(3);
    held[0] = holder;
    held[1] = between;
    free(holder);
}

KEEP_CALL void freed_at_the_top(void) {
    void **holder;
    struct node *list = new_list(3);
    holder = BLOCK(100000);
    holder[6000] = list;
    held[0] = holder;
    free(holder);
}

KEEP_CALL void freed_huge_holder(void) {
    void **holder = BLOCK(HUGE);
    holder[HUGE / 16] = new_list(3);
    free(holder);
}

// Deeper than what is cleared afterwards, and than whatever the program's end needs.
KEEP_CALL void write_deep_in_the_stack(void) {
    void *volatile deep[32768];
    for (int i = 0; i < 32768; i++) deep[i] = NULL;
    for (int i = 0; i < 64; i++) deep[i] = new_node();
    keep((void *)deep);
}
KEEP_CALL void dead_stack_slots(void) { write_deep_in_the_stack(); }

// In the table, what memcheck must see: bytes/blocks of each kind, of what the shape itself allocates.
static const struct shape shapes[] = {
    SHAPE(lost_block), // definite=100/1
    SHAPE(lost_list), // definite=32/1 indirect=288/9
    SHAPE(lost_ring_of_one), // definite=32/1
    SHAPE(lost_ring_of_two), // definite=32/1 indirect=32/1
    SHAPE(lost_ring_of_three), // definite=32/1 indirect=64/2
    SHAPE(lost_tree), // definite=32/1 indirect=448/14
    SHAPE(lost_ring_with_a_tail), // definite=64/2 indirect=96/3
    SHAPE(lost_ring_with_a_tail_to_its_oldest), // definite=32/1 indirect=128/4
    SHAPE(lost_ring_with_an_older_tail), // definite=32/1 indirect=128/4
    SHAPE(lost_doubly_linked_list), // definite=32/1 indirect=128/4
    SHAPE(lost_heads_share_a_list), // definite=64/2 indirect=96/3
    SHAPE(lost_list_ends_in_a_held_one), // definite=32/1 indirect=32/1 reachable=96/3
    SHAPE(lost_sizes), // definite=26747/54
    SHAPE(lost_list_linked_by_xor), // definite=128/4
    SHAPE(lost_strings), // definite=23/2
    SHAPE(held_block), // reachable=100/1
    SHAPE(held_list), // reachable=320/10
    SHAPE(held_ring), // reachable=96/3
    SHAPE(held_tree), // reachable=480/15
    SHAPE(held_in_the_middle_of_a_ring), // reachable=160/5
    SHAPE(held_in_the_middle_of_a_list), // definite=32/1 indirect=32/1 reachable=96/3
    SHAPE(held_by_anonymous_mapping), // reachable=96/3
    SHAPE(held_by_shared_mapping), // reachable=96/3
    SHAPE(held_by_read_only_mapping), // definite=32/1 indirect=64/2
    SHAPE(held_by_inaccessible_mapping), // definite=32/1 indirect=64/2
    SHAPE(held_by_stdio), // reachable=1024/1
    SHAPE(held_by_the_environment), // reachable=?
    SHAPE(interior_pointer), // possible=100/1
    SHAPE(interior_pointer_to_last_byte), // possible=97/1
    SHAPE(pointer_past_the_end), // definite=96/1
    SHAPE(pointer_before_the_start), // definite=96/1
    SHAPE(interior_pointer_to_a_list), // possible=320/10
    SHAPE(interior_pointer_to_a_ring), // possible=96/3
    SHAPE(interior_pointer_in_a_held_list), // possible=64/2 reachable=64/2
    SHAPE(interior_pointer_in_a_lost_block), // definite=32/1 indirect=96/3
    SHAPE(interior_pointer_to_a_held_tail), // possible=96/3 reachable=96/3
    SHAPE(start_pointer_after_an_interior_one), // reachable=160/5
    SHAPE(start_pointer_before_an_interior_one), // reachable=160/5
    SHAPE(start_pointer_found_through_a_chain), // reachable=256/8
    SHAPE(unaligned_pointer), // definite=32/1 indirect=64/2
    SHAPE(unaligned_pointer_in_a_held_block), // definite=32/1 indirect=64/2 reachable=64/1
    SHAPE(tagged_pointer), // possible=96/3
    SHAPE(pointer_tagged_in_its_high_bits), // definite=32/1 indirect=64/2
    SHAPE(length_before_the_pointer), // reachable=208/1
    SHAPE(wrong_length_before_the_pointer), // possible=208/1
    SHAPE(length_before_a_list), // reachable=136/4
    SHAPE(pool_held_by_its_start), // reachable=2112/3
    SHAPE(pool_held_by_a_part), // possible=2112/3
    SHAPE(pool_lost_with_its_parts_linked), // definite=2048/1
    SHAPE(zero_size_lost), // definite=0/1
    SHAPE(zero_size_held), // reachable=0/1
    SHAPE(zero_size_held_by_a_lost_block), // definite=32/1 indirect=0/1
    SHAPE(zero_size_past_its_start), // definite=0/1
    SHAPE(one_byte_held), // reachable=1/1
    SHAPE(one_byte_past_its_start), // definite=1/1
    SHAPE(aligned_64_lost), // definite=1000/1
    SHAPE(aligned_64_held), // reachable=1000/1
    SHAPE(aligned_4096_lost), // definite=100/1
    SHAPE(aligned_4096_held), // reachable=100/1
    SHAPE(aligned_4096_held_inside), // possible=100/1
    SHAPE(aligned_block_before_its_start), // definite=100/1
    SHAPE(aligned_variants_lost), // definite=556/2
    SHAPE(huge_lost), // definite=262144/1
    SHAPE(huge_held), // reachable=262144/1
    SHAPE(huge_held_inside), // possible=262144/1
    SHAPE(huge_aligned_lost), // definite=262144/1
    SHAPE(huge_aligned_held), // reachable=262144/1
    SHAPE(huge_aligned_held_inside), // possible=262144/1
    SHAPE(huge_holds_a_list), // reachable=262240/4
    SHAPE(huge_lost_with_a_list), // definite=262144/1 indirect=96/3
    SHAPE(moved_and_lost), // definite=5000/1 reachable=32/1
    SHAPE(moved_and_held), // reachable=5032/2
    SHAPE(grown_by_remapping_and_lost), // definite=1048576/1
    SHAPE(grown_by_remapping_and_held), // reachable=1048576/1
    SHAPE(shrunk_away_from_the_pointer), // definite=100/1
    SHAPE(shrunk_away_from_its_contents), // definite=32/1 indirect=64/2 reachable=100/1
    SHAPE(freed_holder), // definite=32/1 indirect=64/2
    SHAPE(freed_large_holder), // definite=32/1 indirect=64/2 reachable=24/1
    SHAPE(freed_at_the_top), // definite=32/1 indirect=64/2
    SHAPE(freed_huge_holder), // definite=32/1 indirect=64/2
    SHAPE(dead_stack_slots), // definite=2048/64
};

int main(int argc, char **argv) {
    return run_shape(shapes, sizeof shapes / sizeof *shapes, argc, argv);
}
