//! Threads, and the waiting for words of memory that all their locks are made of.

use std::cell::OnceCell;
use std::ffi::{c_int, c_long, c_void};

use super::clock::{moment, nanoseconds};
use crate::kernel::{Baton, State, Wait, broken, current, hold, set_current};
use crate::real;
use crate::scheduler::{begin, end, may_give_way, wait};

super::addresses![syscall, pthread_create, pthread_join, pthread_detach];

type Start = extern "C" fn(*mut c_void) -> *mut c_void;

/// The work of a new thread.
struct Beginning {
    thread: usize,
    baton: &'static Baton,
    start: Start,
    argument: *mut c_void,
}

/// Ends its thread when it is dropped: after all else that is local to the thread, as it is the first
/// of that, so that the thread holds the baton until then.
struct Last(usize);

impl Drop for Last {
    fn drop(&mut self) {
        set_current(None);
        end(hold(), self.0);
    }
}

thread_local! {
    static LAST: OnceCell<Last> = const { OnceCell::new() };
}

extern "C" fn begins(beginning: *mut c_void) -> *mut c_void {
    // SAFETY: `pthread_create` below made it for this thread alone.
    let beginning = unsafe { Box::from_raw(beginning.cast::<Beginning>()) };
    let Beginning { thread, baton, start, argument } = *beginning;
    begin(baton);
    set_current(Some(thread));
    LAST.with(|last| drop(last.set(Last(thread))));
    start(argument)
}

/// Threads are known to programs by their numbers here, from 1: a thread of the system is awaited
/// as soon as it has ended, and the system may use its name again.
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_create(
    thread: *mut libc::pthread_t,
    attributes: *const libc::pthread_attr_t,
    start: Start,
    argument: *mut c_void,
) -> c_int {
    let Some(me) = current() else {
        // SAFETY: the arguments are the caller's.
        return unsafe { real::pthread_create(thread, attributes, start, argument) };
    };
    let mut kernel = hold();
    let machine = kernel.start_on.unwrap_or_else(|| kernel.machine_of(me));
    let new = kernel.add_thread(machine);
    let baton = kernel.thread(new).baton;
    let beginning = Box::into_raw(Box::new(Beginning { thread: new, baton, start, argument }));
    let mut handle = 0;
    // SAFETY: the thread takes the box; the other arguments are the caller's.
    let failed = unsafe {
        real::pthread_create(&raw mut handle, attributes, begins, beginning.cast::<c_void>())
    };
    if failed != 0 {
        broken("the system has no thread");
    }
    kernel.thread(new).handle = handle;
    kernel.runnable.push(new);
    // SAFETY: the caller has room for a thread's name.
    unsafe { thread.write(new as libc::pthread_t + 1) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_join(thread: libc::pthread_t, value: *mut *mut c_void) -> c_int {
    let Some(me) = current() else {
        // SAFETY: the arguments are the caller's.
        return unsafe { real::pthread_join(thread, value) };
    };
    let mut kernel = hold();
    let joined = usize::try_from(thread).unwrap_or(0).wrapping_sub(1);
    if kernel.thread(joined).state != State::Ended {
        kernel.thread(joined).joining = Some(me);
        drop(wait(kernel, me, Wait::Join(joined), None));
    }
    if !value.is_null() {
        // SAFETY: the caller has room for a pointer. Threads of the standard library return none.
        unsafe { value.write(std::ptr::null_mut()) };
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_detach(thread: libc::pthread_t) -> c_int {
    match current() {
        Some(_) => 0,
        // SAFETY: it has no pointers.
        None => unsafe { real::pthread_detach(thread) },
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn syscall(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    match current() {
        Some(me) if number == libc::SYS_futex => futex(me, (a, b, c, d)),
        // SAFETY: the arguments are the caller's.
        _ => unsafe { real::syscall(number, a, b, c, d, e, f) },
    }
}

fn futex(me: usize, (address, operation, value, timeout): (usize, usize, usize, usize)) -> c_long {
    let operation = c_int::try_from(operation & 0xffff).unwrap_or(0);
    let is_absolute = operation & 0x7f == libc::FUTEX_WAIT_BITSET;
    let clock = match operation & libc::FUTEX_CLOCK_REALTIME {
        0 => libc::CLOCK_MONOTONIC,
        _ => libc::CLOCK_REALTIME,
    };
    match operation & 0x7f {
        libc::FUTEX_WAKE | libc::FUTEX_WAKE_BITSET => {
            let count = value & 0x7fff_ffff;
            let mut kernel = hold();
            let woken = kernel.wake_futex(address, count);
            may_give_way(kernel, me);
            c_long::try_from(woken).unwrap_or(0)
        }
        libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET => {
            let mut kernel = hold();
            // SAFETY: the caller gives the address of a word, which only threads without the
            // baton could change meanwhile.
            let is = unsafe { (address as *const u32).read_volatile() };
            if is as usize != value & 0xffff_ffff {
                return real::fail(libc::EAGAIN);
            }
            let machine = kernel.machine_of(me);
            let until = (timeout != 0).then(|| {
                // SAFETY: the caller gives a time, or none.
                let given = nanoseconds(unsafe { &*(timeout as *const libc::timespec) });
                let given = given.unwrap_or(u64::MAX);
                match is_absolute {
                    true => moment(&mut kernel, machine, clock, given),
                    false => kernel.now.saturating_add(kernel.machine(machine).lasts(given)),
                }
            });
            kernel.futexes.entry(address).or_default().push_back(me);
            match wait(kernel, me, Wait::Futex(address), until) {
                (_, true) => 0,
                (_, false) => real::fail(libc::ETIMEDOUT),
            }
        }
        _ => broken("an operation on a word of memory is not known"),
    }
}
