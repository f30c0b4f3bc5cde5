//! The functions that libc has elsewhere. Each asks first whether the calling thread is simulated.

mod chance;
mod clock;
mod descriptors;
mod disk;
mod poll;
mod sockets;
mod threads;

/// Makes the linker take the functions of this crate, before it looks for others of their names.
pub(crate) fn keep() {
    for functions in [
        chance::ADDRESSES.as_slice(),
        clock::ADDRESSES.as_slice(),
        descriptors::ADDRESSES.as_slice(),
        disk::ADDRESSES.as_slice(),
        poll::ADDRESSES.as_slice(),
        sockets::ADDRESSES.as_slice(),
        threads::ADDRESSES.as_slice(),
    ] {
        std::hint::black_box(functions);
    }
}

/// The address of a function, as a constant.
#[derive(Clone, Copy)]
pub(crate) struct Address(#[allow(dead_code, reason = "kept for the linker")] *const ());

// SAFETY: it is never followed.
unsafe impl Sync for Address {}

macro_rules! addresses {
    ($($function:path),* $(,)?) => {
        pub(crate) static ADDRESSES: [$crate::doors::Address; [$(stringify!($function)),*].len()] =
            [$($crate::doors::Address($function as *const ())),*];
    };
}
use addresses;
