//! Random bytes, and how many processors there are.

use std::ffi::{c_int, c_uint, c_void};

use crate::kernel::{current, hold};
use crate::real;

/// On every machine.
const PROCESSORS: usize = 2;

super::addresses![getrandom, sched_getaffinity];

#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(to: *mut c_void, length: usize, flags: c_uint) -> isize {
    if current().is_none() {
        // SAFETY: the arguments are the caller's.
        return unsafe { real::getrandom(to, length, flags) };
    }
    let mut kernel = hold();
    for at in 0..length {
        let byte = kernel.entropy.next_u64().to_le_bytes()[0];
        // SAFETY: the caller has room for `length` bytes.
        unsafe { to.cast::<u8>().add(at).write(byte) };
    }
    isize::try_from(length).unwrap_or(isize::MAX)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sched_getaffinity(
    process: libc::pid_t,
    length: usize,
    mask: *mut libc::cpu_set_t,
) -> c_int {
    if current().is_none() {
        // SAFETY: the arguments are the caller's.
        return unsafe { real::sched_getaffinity(process, length, mask) };
    }
    // SAFETY: the caller has room for `length` bytes of a set.
    unsafe {
        mask.cast::<u8>().write_bytes(0, length);
        for processor in 0..PROCESSORS {
            libc::CPU_SET(processor, &mut *mask);
        }
    }
    0
}
