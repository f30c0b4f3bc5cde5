//! Calls for descriptors of any kind. Files of the system are read and written as ever.

use std::ffi::{c_int, c_ulong, c_void};

use super::sockets;
use crate::files::FileKind;
use crate::kernel::{current, hold};
use crate::real;
use crate::scheduler::may_give_way;

super::addresses![read, write, readv, writev, close, fcntl, ioctl];

/// Whether the descriptor stands for something simulated.
fn is_simulated(fd: c_int) -> bool {
    current().is_some() && hold().files.file(fd).is_some()
}

/// The counter of an `eventfd`, if it is one.
fn counter<T>(fd: c_int, change: impl FnOnce(&mut u64) -> T) -> Option<T> {
    let me = current()?;
    let mut kernel = hold();
    let file = kernel.files.file(fd)?;
    let Some(FileKind::Event(count)) = kernel.files.kind(file) else { return None };
    let changed = change(count);
    kernel.changed(file);
    may_give_way(kernel, me);
    Some(changed)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn read(fd: c_int, to: *mut c_void, length: usize) -> isize {
    if !is_simulated(fd) {
        // SAFETY: the arguments are the caller's.
        return unsafe { real::read(fd, to, length) };
    }
    match counter(fd, std::mem::take) {
        Some(0) => real::fail(libc::EAGAIN),
        Some(count) => {
            // SAFETY: the caller has room for a counter.
            unsafe { to.cast::<u64>().write_unaligned(count) };
            8
        }
        // SAFETY: the caller has room for `length` bytes.
        None => unsafe { sockets::receive(fd, &[(to.cast(), length)], false) },
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn write(fd: c_int, from: *const c_void, length: usize) -> isize {
    if !is_simulated(fd) {
        // SAFETY: the arguments are the caller's.
        return unsafe { real::write(fd, from, length) };
    }
    // SAFETY: what is written to a counter is one.
    let added = || unsafe { from.cast::<u64>().read_unaligned() };
    match counter(fd, |count| *count += added()) {
        Some(()) => 8,
        // SAFETY: the caller has `length` bytes.
        None => unsafe { sockets::send_all(fd, &[(from.cast(), length)]) },
    }
}

/// The parts of a vector.
///
/// # Safety
/// There are `count` of them.
unsafe fn parts(vector: *const libc::iovec, count: c_int) -> Vec<(*mut u8, usize)> {
    // SAFETY: the caller says so.
    let parts = unsafe { std::slice::from_raw_parts(vector, usize::try_from(count).unwrap_or(0)) };
    parts.iter().map(|part| (part.iov_base.cast(), part.iov_len)).collect()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn readv(fd: c_int, vector: *const libc::iovec, count: c_int) -> isize {
    if !is_simulated(fd) {
        // SAFETY: the arguments are the caller's.
        return unsafe { real::readv(fd, vector, count) };
    }
    // SAFETY: the arguments are the caller's.
    unsafe { sockets::receive(fd, &parts(vector, count), false) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn writev(fd: c_int, vector: *const libc::iovec, count: c_int) -> isize {
    if !is_simulated(fd) {
        // SAFETY: the arguments are the caller's.
        return unsafe { real::writev(fd, vector, count) };
    }
    // SAFETY: the arguments are the caller's.
    let parts = unsafe { parts(vector, count) };
    let parts: Vec<_> =
        parts.into_iter().map(|(part, length)| (part.cast_const(), length)).collect();
    // SAFETY: as above.
    unsafe { sockets::send_all(fd, &parts) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn close(fd: c_int) -> c_int {
    if current().is_some() {
        hold().close(fd);
    }
    // SAFETY: it has no pointers.
    unsafe { real::close(fd) }
}

/// Its third argument is a number or a pointer, if there is one: either has a register.
#[unsafe(no_mangle)]
unsafe extern "C" fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
    // SAFETY: the arguments are the caller's.
    let done = unsafe { real::fcntl(fd, command, argument) };
    if done >= 0
        && current().is_some()
        && (command == libc::F_DUPFD || command == libc::F_DUPFD_CLOEXEC)
    {
        hold().files.duplicate(fd, done);
    }
    done
}

/// Sockets are without waiting from the beginning.
#[unsafe(no_mangle)]
unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: usize) -> c_int {
    if is_simulated(fd) {
        return 0;
    }
    // SAFETY: the arguments are the caller's.
    unsafe { real::ioctl(fd, request, argument) }
}
