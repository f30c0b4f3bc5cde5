//! The bytes that a parser holds, counted. Targets have one thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system's allocator does all of it. Memory that grows is new memory, and counts beside
// the old one while that is copied.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(held, Relaxed);
        // SAFETY: the caller's promises are those that are wanted.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// The result of `parse`, which may hold `bound` bytes at a time.
///
/// # Panics
/// When it has held more.
pub fn within<T>(bound: usize, parse: impl FnOnce() -> T) -> T {
    let before = HELD.load(Relaxed);
    MOST.store(before, Relaxed);
    let parsed = parse();
    let most = MOST.load(Relaxed) - before;
    assert!(most <= bound, "{most} bytes were held, where {bound} are the bound");
    parsed
}

/// A bound that grows with the input, beside what is the same for all.
pub fn times(factor: usize, input: usize) -> usize {
    (256 << 10) + factor * input
}
