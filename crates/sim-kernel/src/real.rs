//! libc's own functions, behind those of this program.

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

/// Finds the next definition of a function behind this program's.
fn find(name: &CStr, found: &AtomicPtr<c_void>) -> *mut c_void {
    let known = found.load(Ordering::Relaxed);
    if !known.is_null() {
        return known;
    }
    // SAFETY: the name ends with a zero byte, and libc is loaded for as long as the process lives.
    let next = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr().cast::<c_char>()) };
    if next.is_null() {
        std::process::abort();
    }
    found.store(next, Ordering::Relaxed);
    next
}

macro_rules! real {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        $(
            /// # Safety
            /// As the function of libc.
            #[allow(clippy::too_many_arguments, reason = "as many as libc's has")]
            pub(crate) unsafe fn $name($($argument: $type),*) -> $result {
                static FOUND: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
                const NAME: &CStr =
                    match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                        Ok(name) => name,
                        Err(_) => c"",
                    };
                // SAFETY: libc defines it with this signature.
                unsafe {
                    let function: unsafe extern "C" fn($($type),*) -> $result =
                        std::mem::transmute(find(NAME, &FOUND));
                    function($($argument),*)
                }
            }
        )*
    };
}

real! {
    syscall(
        number: c_long, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize
    ) -> c_long;
    clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int;
    nanosleep(time: *const libc::timespec, rest: *mut libc::timespec) -> c_int;
    clock_nanosleep(
        clock: libc::clockid_t, flags: c_int,
        time: *const libc::timespec, rest: *mut libc::timespec
    ) -> c_int;
    sched_yield() -> c_int;
    getrandom(to: *mut c_void, length: usize, flags: c_uint) -> isize;
    sched_getaffinity(process: libc::pid_t, length: usize, mask: *mut libc::cpu_set_t) -> c_int;
    pthread_create(
        thread: *mut libc::pthread_t, attributes: *const libc::pthread_attr_t,
        start: extern "C" fn(*mut c_void) -> *mut c_void, argument: *mut c_void
    ) -> c_int;
    pthread_detach(thread: libc::pthread_t) -> c_int;
    pthread_join(thread: libc::pthread_t, value: *mut *mut c_void) -> c_int;
    epoll_create1(flags: c_int) -> c_int;
    epoll_ctl(epoll: c_int, operation: c_int, fd: c_int, event: *mut libc::epoll_event) -> c_int;
    epoll_wait(epoll: c_int, events: *mut libc::epoll_event, room: c_int, timeout: c_int) -> c_int;
    eventfd(initial: c_uint, flags: c_int) -> c_int;
    socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    bind(fd: c_int, address: *const libc::sockaddr, length: libc::socklen_t) -> c_int;
    listen(fd: c_int, backlog: c_int) -> c_int;
    accept4(
        fd: c_int, address: *mut libc::sockaddr, length: *mut libc::socklen_t, flags: c_int
    ) -> c_int;
    connect(fd: c_int, address: *const libc::sockaddr, length: libc::socklen_t) -> c_int;
    getsockname(fd: c_int, address: *mut libc::sockaddr, length: *mut libc::socklen_t) -> c_int;
    getpeername(fd: c_int, address: *mut libc::sockaddr, length: *mut libc::socklen_t) -> c_int;
    getsockopt(
        fd: c_int, level: c_int, name: c_int, value: *mut c_void, length: *mut libc::socklen_t
    ) -> c_int;
    setsockopt(
        fd: c_int, level: c_int, name: c_int, value: *const c_void, length: libc::socklen_t
    ) -> c_int;
    shutdown(fd: c_int, how: c_int) -> c_int;
    send(fd: c_int, from: *const c_void, length: usize, flags: c_int) -> isize;
    recv(fd: c_int, to: *mut c_void, length: usize, flags: c_int) -> isize;
    read(fd: c_int, to: *mut c_void, length: usize) -> isize;
    write(fd: c_int, from: *const c_void, length: usize) -> isize;
    readv(fd: c_int, parts: *const libc::iovec, count: c_int) -> isize;
    writev(fd: c_int, parts: *const libc::iovec, count: c_int) -> isize;
    close(fd: c_int) -> c_int;
    fcntl(fd: c_int, command: c_int, argument: usize) -> c_int;
    ioctl(fd: c_int, request: libc::c_ulong, argument: usize) -> c_int;
    fsync(fd: c_int) -> c_int;
    fdatasync(fd: c_int) -> c_int;
    statvfs64(path: *const c_char, room: *mut libc::statvfs64) -> c_int;
}

/// Gives the caller its error, and the result that says that there is one.
pub(crate) fn fail<T: From<i8>>(error: c_int) -> T {
    // SAFETY: the place of the error number is the calling thread's own.
    unsafe { *libc::__errno_location() = error };
    T::from(-1)
}
