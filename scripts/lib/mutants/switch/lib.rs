//! The switches of mutants, compiled into the crates under test: which mutant a process runs with
//! is in its environment, and holds for the processes that it starts.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

/// One more than the largest number of a mutant.
const LIMIT: usize = 65_536;

/// The value of `ACTIVE` before the environment was read.
const UNREAD: u32 = u32::MAX;
/// Its value where no mutant is on, and every switch that is reached is recorded.
const TRACING: u32 = u32::MAX - 1;

static ACTIVE: AtomicU32 = AtomicU32::new(UNREAD);
static REACHED: [AtomicBool; LIMIT] = [const { AtomicBool::new(false) }; LIMIT];
static TRACE: OnceLock<Option<File>> = OnceLock::new();

/// Whether this process runs with mutant `number`.
#[inline]
pub fn on(number: u32) -> bool {
    let active = ACTIVE.load(Relaxed);
    if active >= TRACING { first_or_traced(number) } else { active == number }
}

/// Whether this process runs with none of `numbers`.
#[inline]
pub fn off<const N: usize>(numbers: [u32; N]) -> bool {
    // All are asked, so that all are traced.
    numbers.into_iter().filter(|number| on(*number)).count() == 0
}

/// `value`, or its opposite where this process runs with mutant `number`.
#[inline]
pub fn flip(value: bool, number: u32) -> bool {
    value != on(number)
}

#[cold]
#[inline(never)]
fn first_or_traced(number: u32) -> bool {
    if ACTIVE.load(Relaxed) == UNREAD {
        let chosen = std::env::var("MERIDIAN_MUTANT").ok().and_then(|value| value.parse().ok()).unwrap_or(0);
        let traced = std::env::var_os("MERIDIAN_MUTANT_TRACE").is_some();
        ACTIVE.store(if traced { TRACING } else { chosen }, Relaxed);
        if !traced {
            return chosen == number;
        }
    }
    if REACHED.get(number as usize).is_some_and(|reached| !reached.swap(true, Relaxed)) {
        let open = || OpenOptions::new().create(true).append(true).open(std::env::var_os("MERIDIAN_MUTANT_TRACE")?).ok();
        if let Some(mut file) = TRACE.get_or_init(open).as_ref() {
            // One write, since several processes share the file.
            let _ = file.write_all(format!("{number}\n").as_bytes());
        }
    }
    false
}
