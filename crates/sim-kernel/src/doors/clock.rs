//! Clocks, and sleep.

use std::ffi::c_int;

use crate::kernel::{Kernel, Wait, current, hold};
use crate::real;
use crate::scheduler::{give_way, wait};

/// The duration of a look at a clock, so that a loop that waits for a moment ends.
const LOOK_NS: u64 = 150;

super::addresses![clock_gettime, nanosleep, clock_nanosleep, sched_yield];

/// Nanoseconds of a time; `None`: it is none.
pub(super) fn nanoseconds(time: &libc::timespec) -> Option<u64> {
    let (seconds, rest) = (u64::try_from(time.tv_sec).ok()?, u64::try_from(time.tv_nsec).ok()?);
    seconds.checked_mul(1_000_000_000)?.checked_add(rest)
}

/// When the clock of the machine will say this.
pub(super) fn moment(kernel: &mut Kernel, machine: usize, clock: c_int, time_ns: u64) -> u64 {
    let now = kernel.now;
    let on = kernel.machine(machine);
    let said = match clock {
        libc::CLOCK_REALTIME => on.wall(now),
        _ => on.monotonic(now),
    };
    now.saturating_add(on.lasts(time_ns.saturating_sub(said)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    let Some(me) = current() else {
        // SAFETY: the arguments are the caller's.
        return unsafe { real::clock_gettime(clock, time) };
    };
    let mut kernel = hold();
    kernel.now += LOOK_NS;
    let (now, machine) = (kernel.now, kernel.machine_of(me));
    let on = kernel.machine(machine);
    let says = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => on.wall(now),
        libc::CLOCK_THREAD_CPUTIME_ID | libc::CLOCK_PROCESS_CPUTIME_ID => now,
        _ => on.monotonic(now),
    };
    drop(kernel);
    let part = |nanoseconds: u64| i64::try_from(nanoseconds).unwrap_or(i64::MAX);
    let said =
        libc::timespec { tv_sec: part(says / 1_000_000_000), tv_nsec: part(says % 1_000_000_000) };
    // SAFETY: the caller gives the place of a time.
    unsafe { time.write(said) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nanosleep(time: *const libc::timespec, rest: *mut libc::timespec) -> c_int {
    let Some(me) = current() else {
        // SAFETY: the arguments are the caller's.
        return unsafe { real::nanosleep(time, rest) };
    };
    // SAFETY: the caller gives a time.
    let Some(lasts) = nanoseconds(unsafe { &*time }) else { return real::fail(libc::EINVAL) };
    let mut kernel = hold();
    let machine = kernel.machine_of(me);
    let until = kernel.now.saturating_add(kernel.machine(machine).lasts(lasts));
    drop(wait(kernel, me, Wait::Time, Some(until)));
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn clock_nanosleep(
    clock: libc::clockid_t,
    flags: c_int,
    time: *const libc::timespec,
    rest: *mut libc::timespec,
) -> c_int {
    let Some(me) = current() else {
        // SAFETY: the arguments are the caller's.
        return unsafe { real::clock_nanosleep(clock, flags, time, rest) };
    };
    // SAFETY: the caller gives a time.
    let Some(given) = nanoseconds(unsafe { &*time }) else { return libc::EINVAL };
    let mut kernel = hold();
    let machine = kernel.machine_of(me);
    let until = match flags & libc::TIMER_ABSTIME {
        0 => kernel.now.saturating_add(kernel.machine(machine).lasts(given)),
        _ => moment(&mut kernel, machine, clock, given),
    };
    drop(wait(kernel, me, Wait::Time, Some(until)));
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sched_yield() -> c_int {
    match current() {
        // SAFETY: it has no arguments.
        None => unsafe { real::sched_yield() },
        Some(me) => {
            drop(give_way(hold(), me));
            0
        }
    }
}
