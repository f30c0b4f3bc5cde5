//! The properties of a disk: how long an fsync takes, what it makes durable, and how much room
//! there is.

use std::ffi::{c_char, c_int};

use crate::durable::look_at;
use crate::kernel::{Wait, current, hold};
use crate::real;
use crate::scheduler::wait;

const BLOCK_BYTES: u64 = 4096;
const FREE_BYTES: u64 = 800 << 20;

super::addresses![fsync, fdatasync, statvfs64];

/// Waits as long as a disk takes; then what the file held at first is durable. True: the thread is
/// simulated.
fn sync(fd: c_int) -> bool {
    let Some(me) = current() else { return false };
    let noted = look_at(fd);
    let mut kernel = hold();
    let takes = kernel.settings.fsync_ns.clone();
    let takes = kernel.chance.within(*takes.start()..*takes.end() + 1);
    let until = kernel.now + takes;
    let (mut kernel, _) = wait(kernel, me, Wait::Time, Some(until));
    // A socket, and what else has no content, is not on the disk.
    if let Ok(noted) = noted {
        kernel.durable.note(noted);
    }
    true
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    // SAFETY: it has no pointers.
    if sync(fd) { 0 } else { unsafe { real::fsync(fd) } }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    // SAFETY: it has no pointers.
    if sync(fd) { 0 } else { unsafe { real::fdatasync(fd) } }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn statvfs64(path: *const c_char, room: *mut libc::statvfs64) -> c_int {
    // SAFETY: the arguments are the caller's.
    let failed = unsafe { real::statvfs64(path, room) };
    if failed == 0 && current().is_some() {
        // SAFETY: it was written just now.
        let room = unsafe { &mut *room };
        (room.f_frsize, room.f_bavail) = (BLOCK_BYTES, FREE_BYTES / BLOCK_BYTES);
    }
    failed
}
