//! The lock-free protocols of the heap file under loom, which tries the orders of the threads' steps and the values
//! that the memory orderings allow to be read.
//!
//! These are models, step by step as `blocks.rs`, `arena.rs`, `stacks.rs` and `heapfile/src/arena.rs` have them. The
//! code itself cannot run under loom: its atomics lie in a mapped file, where loom's do not fit, and its slots
//! change by a 16-byte exchange, which loom does not know. A slot's two words are therefore the halves of one
//! 64-bit atomic here: the exchange of 16 bytes is an exchange of that; the store of word 0 alone, which leaves
//! word 1 as it is, is a `fetch_and`. Loads of one word are loads of the whole.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use loom::sync::atomic::{AtomicU32, AtomicU64};
use loom::thread;

fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    // Bounds the time; the planted mistakes below are found within it.
    builder.preemption_bound = Some(3);
    builder.check(body);
}

// ---- The block table (blocks.rs) ---------------------------------------------------------------------------

/// How a model publishes; `WordByWord` is a mistake that the model must notice.
#[derive(Clone, Copy, PartialEq)]
enum Publish {
    OneStep,
    WordByWord,
}

struct Slot(AtomicU64);

impl Slot {
    fn word0(&self, order: loom::sync::atomic::Ordering) -> u32 {
        self.0.load(order) as u32
    }
    fn word1(&self) -> u32 {
        (self.0.load(Relaxed) >> 32) as u32
    }
    fn both(&self) -> (u32, u32) {
        let both = self.0.load(Acquire);
        (both as u32, (both >> 32) as u32)
    }
    /// `take_slot`.
    fn take(&self, words: (u32, u32), publish: Publish) -> bool {
        if self.word0(Relaxed) != 0 {
            return false;
        }
        let old = u64::from(self.word1()) << 32;
        let new = u64::from(words.0) | u64::from(words.1) << 32;
        match publish {
            Publish::OneStep => self.0.compare_exchange(old, new, AcqRel, Relaxed).is_ok(),
            Publish::WordByWord => {
                let claimed = old | u64::from(words.0);
                if self.0.compare_exchange(old, claimed, AcqRel, Relaxed).is_err() {
                    return false;
                }
                self.0.store(new, Release);
                true
            }
        }
    }
    /// `Found::remove`.
    fn remove(&self) {
        self.0.fetch_and(!0xffff_ffff, Release);
    }
}

struct Segment {
    next: AtomicU32,
    buckets: AtomicU32,
    slot: Slot,
}

/// One region of the address space whose segments have one slot each, so that every block needs growth.
struct Region {
    entry: AtomicU64,
    segments: Vec<Segment>,
    made: AtomicU32,
}

/// Where growth puts its segment, which depends on sizes in the code.
#[derive(Clone, Copy, PartialEq)]
enum Growth {
    InFront,
    Behind,
}

/// A block's second word follows from its first, so that a mixture shows.
fn word1(word0: u32) -> u32 {
    word0 * 1000 + 7
}

impl Region {
    fn new(segments: usize) -> Region {
        let segment =
            || Segment { next: AtomicU32::new(0), buckets: AtomicU32::new(0), slot: Slot(AtomicU64::new(0)) };
        let segments = (0..segments).map(|_| segment()).collect();
        Region { entry: AtomicU64::new(0), segments, made: AtomicU32::new(0) }
    }

    fn segment(&self, units: u32) -> Option<&Segment> {
        let segment = self.segments.get((units as usize).checked_sub(1)?)?;
        assert_ne!(segment.buckets.load(Relaxed), 0, "a segment was reached before its size");
        Some(segment)
    }

    fn new_segment(&self) -> u32 {
        let units = self.made.fetch_add(1, Relaxed) + 1;
        self.segments[units as usize - 1].buckets.store(1, Relaxed);
        units
    }

    /// `insert_slowly`; `insert` is its first look at the head.
    fn insert(&self, word0: u32, growth: Growth, publish: Publish) -> bool {
        let words = (word0, word1(word0));
        for _ in 0..8 {
            let entry = self.entry.load(Acquire);
            if entry == 0 {
                let fresh = u64::from(self.new_segment()) | 1 << 32;
                let _ = self.entry.compare_exchange(0, fresh, AcqRel, Acquire);
                continue;
            }
            let Some(head) = self.segment(entry as u32) else { return false };
            let mut view = Some(head);
            while let Some(current) = view {
                if current.slot.take(words, publish) {
                    return true;
                }
                view = self.segment(current.next.load(Acquire));
            }
            let units = self.new_segment();
            let segment = &self.segments[units as usize - 1];
            if growth == Growth::InFront {
                segment.next.store(entry as u32, Relaxed);
                let fresh = u64::from(units) | 1 << 32;
                let _ = self.entry.compare_exchange(entry, fresh, AcqRel, Acquire);
            } else {
                let next = head.next.load(Acquire);
                segment.next.store(next, Relaxed);
                let _ = head.next.compare_exchange(next, units, AcqRel, Acquire);
            }
        }
        false
    }

    fn chain(&self) -> impl Iterator<Item = &Segment> {
        let mut next = self.entry.load(Acquire) as u32;
        std::iter::from_fn(move || {
            let segment = self.segment(next)?;
            next = segment.next.load(Acquire);
            Some(segment)
        })
    }

    /// `find`, by the thread that the block belongs to.
    fn find(&self, word0: u32) -> Option<&Slot> {
        let slot = self.chain().map(|segment| &segment.slot).find(|slot| slot.word0(Acquire) == word0)?;
        assert_eq!(slot.word1(), word1(word0), "another block's second word");
        Some(slot)
    }

    /// What a reader sees, in the order of the chain.
    fn read(&self) -> Vec<u32> {
        let mut seen = Vec::new();
        for segment in self.chain() {
            let (first, second) = segment.slot.both();
            if first != 0 {
                assert_eq!(second, word1(first), "a torn block");
                seen.push(first);
            }
        }
        seen
    }

    fn sorted(&self) -> Vec<u32> {
        let mut seen = self.read();
        seen.sort_unstable();
        seen
    }
}

#[test]
fn two_first_blocks_of_a_region_are_both_kept() {
    model(|| {
        let region = Arc::new(Region::new(8));
        let other = region.clone();
        let thread = thread::spawn(move || assert!(other.insert(1, Growth::Behind, Publish::OneStep)));
        assert!(region.insert(2, Growth::InFront, Publish::OneStep));
        assert!(region.find(2).is_some());
        thread.join().unwrap();
        assert_eq!(region.sorted(), [1, 2]);
    });
}

#[test]
fn growth_at_both_ends_neither_drops_nor_doubles_a_block() {
    for (first, second) in [
        (Growth::InFront, Growth::Behind),
        (Growth::InFront, Growth::InFront),
        (Growth::Behind, Growth::Behind),
    ] {
        model(move || {
            let region = Arc::new(Region::new(10));
            assert!(region.insert(9, first, Publish::OneStep));
            let other = region.clone();
            let thread = thread::spawn(move || assert!(other.insert(1, first, Publish::OneStep)));
            assert!(region.insert(2, second, Publish::OneStep));
            assert!(region.find(9).is_some() && region.find(2).is_some());
            thread.join().unwrap();
            assert_eq!(region.sorted(), [1, 2, 9]);
        });
    }
}

/// A reader looks on while a slot is freed, taken by another thread, and the chain grows.
fn reuse_a_slot(publish: Publish) {
    model(move || {
        let region = Arc::new(Region::new(10));
        assert!(region.insert(9, Growth::Behind, publish) && region.insert(1, Growth::Behind, publish));
        let (owner, reader) = (region.clone(), region.clone());
        let owner = thread::spawn(move || owner.find(1).expect("the owner's block").remove());
        let reader = thread::spawn(move || {
            let seen = reader.read();
            assert_eq!(seen.iter().filter(|&&word| word == 9).count(), 1, "a block that stays is seen once");
        });
        assert!(region.insert(2, Growth::InFront, publish));
        owner.join().unwrap();
        reader.join().unwrap();
        assert_eq!(region.sorted(), [2, 9]);
    });
}

#[test]
fn a_reused_slot_is_never_torn() {
    reuse_a_slot(Publish::OneStep);
}

#[test]
#[should_panic(expected = "torn")]
fn publishing_word_by_word_would_be_noticed() {
    reuse_a_slot(Publish::WordByWord);
}

/// The same address: freed by one thread, handed out to another by the allocator, whose lock orders the two.
#[test]
fn an_address_can_pass_from_thread_to_thread() {
    model(|| {
        let region = Arc::new(Region::new(8));
        assert!(region.insert(5, Growth::Behind, Publish::OneStep));
        let allocator = Arc::new(AtomicU32::new(0));
        let (other, given) = (region.clone(), allocator.clone());
        let thread = thread::spawn(move || {
            if given.load(Acquire) == 1 {
                assert!(other.find(5).is_none(), "the former life of the address");
                assert!(other.insert(5, Growth::Behind, Publish::OneStep));
                other.find(5).expect("own block").remove();
            }
        });
        region.find(5).expect("own block").remove();
        allocator.store(1, Release);
        assert!(region.insert(6, Growth::Behind, Publish::OneStep));
        thread.join().unwrap();
        assert_eq!(region.sorted(), [6]);
    });
}

// ---- The free list of chunks (arena.rs) --------------------------------------------------------------------

/// The list; `TAGGED` is false for a mistake that the model must notice.
struct Chunks<const TAGGED: bool> {
    head: AtomicU64,
    next: Vec<AtomicU32>,
    content: Vec<UnsafeCell<u32>>,
}

impl<const TAGGED: bool> Chunks<TAGGED> {
    /// All but chunk 0 are free, in order.
    fn new(count: u32) -> Self {
        let next = (0..count).map(|number| AtomicU32::new((number + 1) % count)).collect();
        let content = (0..count).map(|_| UnsafeCell::new(0)).collect();
        Chunks { head: AtomicU64::new(1), next, content }
    }

    fn replacement(head: u64, first: u64) -> u64 {
        let tag = if TAGGED { (head >> 32).wrapping_add(1) } else { 0 };
        tag << 32 | first
    }

    /// `pop_free`.
    fn pop(&self) -> Option<u32> {
        loop {
            let head = self.head.load(Acquire);
            let number = head as u32;
            if number == 0 {
                return None;
            }
            let next = self.next[number as usize].load(Relaxed);
            let replacement = Self::replacement(head, u64::from(next));
            if self.head.compare_exchange(head, replacement, AcqRel, Relaxed).is_ok() {
                self.next[number as usize].store(0, Relaxed);
                // SAFETY: the chunk is this thread's; loom checks that.
                self.content[number as usize].with_mut(|content| unsafe { *content += 1 });
                return Some(number);
            }
        }
    }

    /// `push_free` of the holder.
    fn push(&self, number: u32) {
        // SAFETY: the chunk is still this thread's; loom checks that.
        self.content[number as usize].with_mut(|content| unsafe { *content = 0 });
        let _ = self.head.fetch_update(Release, Acquire, |head| {
            self.next[number as usize].store(head as u32, Relaxed);
            Some(Self::replacement(head, u64::from(number)))
        });
    }

    fn drain(&self) -> Vec<u32> {
        std::iter::from_fn(|| self.pop()).take(8).collect()
    }
}

fn share_chunks<const TAGGED: bool>() {
    model(|| {
        let chunks = Arc::new(Chunks::<TAGGED>::new(4));
        let other = chunks.clone();
        // One takes two and gives the first back, so that the head is the same again with another behind it.
        let thread = thread::spawn(move || {
            let first = other.pop();
            let second = other.pop();
            if let Some(first) = first {
                other.push(first);
            }
            second
        });
        let own = chunks.pop();
        let others = thread.join().unwrap();
        let mut all = chunks.drain();
        all.extend(own.into_iter().chain(others));
        all.sort_unstable();
        assert_eq!(all, [1, 2, 3], "each chunk is in one place");
    });
}

#[test]
fn a_chunk_has_one_owner() {
    share_chunks::<true>();
}

#[test]
#[should_panic]
fn a_free_list_without_tags_would_be_noticed() {
    share_chunks::<false>();
}

#[test]
fn chunks_are_given_back_and_taken_at_once() {
    model(|| {
        let chunks = Arc::new(Chunks::<true>::new(3));
        let (first, second) = (chunks.pop().expect("free"), chunks.pop().expect("free"));
        let (giver, taker) = (chunks.clone(), chunks.clone());
        let giver = thread::spawn(move || giver.push(first));
        let taker = thread::spawn(move || taker.pop());
        chunks.push(second);
        giver.join().unwrap();
        let taken = taker.join().unwrap();
        let mut all = chunks.drain();
        all.extend(taken);
        all.sort_unstable();
        assert_eq!(all, [1, 2]);
    });
}

// ---- Numbers of stacks (stacks.rs) -------------------------------------------------------------------------

/// `stack_of`, `new_stack` and `ensure_block`: one number per node, and whoever has it finds the node.
struct Stacks {
    node_stack: AtomicU32,
    stacks: AtomicU32,
    block: AtomicU32,
    blocks: AtomicU32,
    /// Two blocks of four places.
    places: Vec<AtomicU32>,
}

const NODE: u32 = 77;

impl Stacks {
    fn number(&self) -> u32 {
        let known = self.node_stack.load(Acquire);
        if known != 0 {
            return known;
        }
        let stack = self.stacks.fetch_add(1, Relaxed);
        let mut block = self.block.load(Acquire);
        if block == 0 {
            let fresh = self.blocks.fetch_add(1, Relaxed);
            block = match self.block.compare_exchange(0, fresh, AcqRel, Acquire) {
                Ok(_) => fresh,
                Err(first) => first,
            };
        }
        self.places[(block * 4 + stack) as usize - 4].store(NODE, Release);
        match self.node_stack.compare_exchange(0, stack, AcqRel, Acquire) {
            Ok(_) => stack,
            Err(first) => first,
        }
    }

    fn node(&self, stack: u32) -> u32 {
        self.places[(self.block.load(Acquire) * 4 + stack) as usize - 4].load(Acquire)
    }
}

#[test]
fn a_stack_is_named_once() {
    model(|| {
        let stacks = Arc::new(Stacks {
            node_stack: AtomicU32::new(0),
            stacks: AtomicU32::new(1),
            block: AtomicU32::new(0),
            blocks: AtomicU32::new(1),
            places: (0..8).map(|_| AtomicU32::new(0)).collect(),
        });
        let (other, reader) = (stacks.clone(), stacks.clone());
        let thread = thread::spawn(move || other.number());
        let reader = thread::spawn(move || {
            let stack = reader.node_stack.load(Acquire);
            assert!(stack == 0 || reader.node(stack) == NODE);
        });
        let own = stacks.number();
        assert_eq!(stacks.node(own), NODE);
        assert_eq!(thread.join().unwrap(), own);
        reader.join().unwrap();
    });
}
