//! The state of a simulation, for the thread with the baton.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::chance::Chance;
use crate::durable::Durable;
use crate::files::Files;
use crate::machine::Machine;
use crate::network::{Network, Packet};
use crate::real;
use crate::settings::Settings;

static KERNEL: OnceLock<Mutex<Kernel>> = OnceLock::new();

thread_local! {
    /// The simulated thread that this thread is.
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The state, for the thread with the baton. No other thread waits for it.
pub(crate) type Held = MutexGuard<'static, Kernel>;

/// All that a simulation consists of.
pub(crate) struct Kernel {
    /// Nanoseconds since the simulation began.
    pub(crate) now: u64,
    pub(crate) settings: Settings,
    /// For the scheduler, the disks and the network.
    pub(crate) chance: Chance,
    /// For programs.
    pub(crate) entropy: Chance,
    pub(crate) threads: Vec<Thread>,
    pub(crate) runnable: Vec<usize>,
    /// By time, and by the order in which they came to be known.
    pub(crate) events: BTreeMap<(u64, u64), Event>,
    pub(crate) scheduled: u64,
    pub(crate) machines: Vec<Machine>,
    /// The threads that wait at an address, in their order.
    pub(crate) futexes: BTreeMap<usize, VecDeque<usize>>,
    pub(crate) files: Files,
    pub(crate) network: Network,
    pub(crate) durable: Durable,
    /// The thread of the system that ended last, and may not be gone yet.
    pub(crate) ended: Option<libc::pthread_t>,
    /// Where the next thread is started, if not where the present one runs.
    pub(crate) start_on: Option<usize>,
    /// Of everything that was decided.
    pub(crate) digest: u64,
}

/// An event of a known time.
pub(crate) enum Event {
    /// A wait ends, unless it ended before.
    Timeout {
        thread: usize,
        wait: u64,
    },
    Packet(Packet),
}

/// A simulated thread.
pub(crate) struct Thread {
    pub(crate) machine: usize,
    pub(crate) baton: &'static Baton,
    pub(crate) state: State,
    /// Counts the waits of the thread.
    pub(crate) wait: u64,
    pub(crate) timed_out: bool,
    /// As the system knows it; 0 until it is known.
    pub(crate) handle: libc::pthread_t,
    pub(crate) joining: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Runs,
    Waits(Wait),
    Ended,
}

/// The reason of a thread to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    Time,
    Futex(usize),
    Epoll(usize),
    Join(usize),
}

/// The right of one thread to run.
pub(crate) struct Baton(AtomicU32);

impl Baton {
    pub(crate) fn new() -> &'static Self {
        Box::leak(Box::new(Self(AtomicU32::new(0))))
    }

    fn address(&self) -> usize {
        self.0.as_ptr() as usize
    }

    pub(crate) fn pass(&self) {
        self.0.store(1, Ordering::Release);
        let wake = (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as usize;
        // SAFETY: the address lives for ever.
        unsafe { real::syscall(libc::SYS_futex, self.address(), wake, 1, 0, 0, 0) };
    }

    /// Waits until it is passed to this thread: for ever, if the thread's machine was killed.
    pub(crate) fn take(&self) {
        let wait = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as usize;
        while self.0.swap(0, Ordering::Acquire) == 0 {
            // SAFETY: as above.
            unsafe { real::syscall(libc::SYS_futex, self.address(), wait, 0, 0, 0, 0) };
        }
    }
}

/// Begins the simulation. False: there was one.
pub(crate) fn set_up(kernel: Kernel) -> bool {
    KERNEL.set(Mutex::new(kernel)).is_ok()
}

/// For the thread with the baton.
pub(crate) fn hold() -> Held {
    match KERNEL.get() {
        Some(kernel) => kernel.lock().unwrap_or_else(PoisonError::into_inner),
        None => broken("there is no simulation"),
    }
}

/// The simulated thread that this one is; `None`: it gets what the system has.
pub(crate) fn current() -> Option<usize> {
    CURRENT.get()
}

pub(crate) fn set_current(thread: Option<usize>) {
    CURRENT.set(thread);
}

/// The simulation cannot go on, and says why.
pub(crate) fn broken(why: &str) -> ! {
    set_current(None);
    eprintln!("the simulation is broken: {why}");
    std::process::abort();
}

impl Kernel {
    pub(crate) fn thread(&mut self, thread: usize) -> &mut Thread {
        match self.threads.get_mut(thread) {
            Some(thread) => thread,
            None => broken("a thread is not known"),
        }
    }

    pub(crate) fn machine(&mut self, machine: usize) -> &mut Machine {
        match self.machines.get_mut(machine) {
            Some(machine) => machine,
            None => broken("a machine is not known"),
        }
    }

    /// The machine of the thread.
    pub(crate) fn machine_of(&mut self, thread: usize) -> usize {
        self.thread(thread).machine
    }

    pub(crate) fn schedule(&mut self, at: u64, event: Event) {
        self.scheduled += 1;
        self.events.insert((at, self.scheduled), event);
    }

    /// Notes what was decided.
    pub(crate) fn note(&mut self, what: u64) {
        let mixed = (self.digest ^ what).wrapping_mul(0x0100_0000_01b3);
        self.digest = mixed ^ (mixed >> 29);
    }
}
