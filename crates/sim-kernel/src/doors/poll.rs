//! `epoll` and `eventfd`.

use std::ffi::{c_int, c_uint};

use crate::files::{Epoll, FileKind};
use crate::kernel::{Wait, current, hold};
use crate::real;
use crate::scheduler::wait;

super::addresses![epoll_create1, epoll_ctl, epoll_wait, eventfd];

/// A descriptor that is the system's, for something that is not.
pub(super) fn open(me: usize, kind: FileKind) -> c_int {
    // SAFETY: it has no pointers.
    let descriptor = unsafe { real::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if descriptor >= 0 {
        let mut kernel = hold();
        let machine = kernel.machine_of(me);
        kernel.files.open(descriptor, machine, kind);
    }
    descriptor
}

#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_create1(flags: c_int) -> c_int {
    match current() {
        // SAFETY: it has no pointers.
        None => unsafe { real::epoll_create1(flags) },
        Some(me) => open(me, FileKind::Epoll(Epoll::default())),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn eventfd(initial: c_uint, flags: c_int) -> c_int {
    match current() {
        // SAFETY: it has no pointers.
        None => unsafe { real::eventfd(initial, flags) },
        Some(me) => open(me, FileKind::Event(u64::from(initial))),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_ctl(
    epoll: c_int,
    operation: c_int,
    fd: c_int,
    event: *mut libc::epoll_event,
) -> c_int {
    if current().is_some() {
        let mut kernel = hold();
        if let Some(file) = kernel.files.file(epoll) {
            // SAFETY: the caller gives an event, or none.
            let event = unsafe { event.as_ref() }.map(|event| (event.events, event.u64));
            return match kernel.watch(file, operation, fd, event) {
                true => 0,
                false => real::fail(libc::EINVAL),
            };
        }
    }
    // SAFETY: the arguments are the caller's.
    unsafe { real::epoll_ctl(epoll, operation, fd, event) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_wait(
    epoll: c_int,
    events: *mut libc::epoll_event,
    room: c_int,
    timeout: c_int,
) -> c_int {
    let simulated = current().and_then(|me| Some((me, hold().files.file(epoll)?)));
    let Some((me, file)) = simulated else {
        // SAFETY: the arguments are the caller's.
        return unsafe { real::epoll_wait(epoll, events, room, timeout) };
    };
    let mut kernel = hold();
    let machine = kernel.machine_of(me);
    let until = u64::try_from(timeout)
        .ok()
        .map(|millis| kernel.now.saturating_add(kernel.machine(machine).lasts(millis * 1_000_000)));
    loop {
        let told = kernel.news(file, usize::try_from(room).unwrap_or(0));
        let is_over = until.is_some_and(|until| until <= kernel.now);
        if !told.is_empty() || is_over {
            for (at, (events_told, data)) in told.iter().enumerate() {
                let event = libc::epoll_event { events: *events_told, u64: *data };
                // SAFETY: the caller has room for as many events.
                unsafe { events.add(at).write(event) };
            }
            return c_int::try_from(told.len()).unwrap_or(0);
        }
        kernel.waits_for(file, me);
        (kernel, _) = wait(kernel, me, Wait::Epoll(file), until);
    }
}
