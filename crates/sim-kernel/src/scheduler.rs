//! Which thread runs next, and the passing of time.

use crate::kernel::{Baton, Event, Held, Kernel, State, Thread, Wait, broken, hold};
use crate::real;

/// The duration of a change of threads.
const SWITCH_NS: u64 = 2_000;

impl Kernel {
    /// The thread can run.
    pub(crate) fn wake(&mut self, thread: usize) {
        let waiting = self.thread(thread);
        if let State::Waits(_) = waiting.state {
            waiting.state = State::Runs;
            waiting.timed_out = false;
            self.runnable.push(thread);
        }
    }

    /// Lets the threads run again that wait at an address, the first ones first.
    pub(crate) fn wake_futex(&mut self, address: usize, count: usize) -> usize {
        let mut woken = 0;
        while woken < count {
            let waiting = self.futexes.get_mut(&address);
            let Some(thread) = waiting.and_then(std::collections::VecDeque::pop_front) else {
                self.futexes.remove(&address);
                break;
            };
            self.wake(thread);
            woken += 1;
        }
        woken
    }

    fn time_out(&mut self, thread: usize, wait: u64) {
        let waiting = self.thread(thread);
        let State::Waits(on) = waiting.state else { return };
        if waiting.wait != wait {
            return;
        }
        waiting.state = State::Runs;
        waiting.timed_out = true;
        self.runnable.push(thread);
        if let Wait::Futex(address) = on
            && let Some(queue) = self.futexes.get_mut(&address)
        {
            queue.retain(|waiting| *waiting != thread);
            if queue.is_empty() {
                self.futexes.remove(&address);
            }
        }
    }

    /// Lets everything happen that is due.
    fn catch_up(&mut self) {
        while let Some(next) = self.events.first_entry() {
            if next.key().0 > self.now {
                return;
            }
            match next.remove() {
                Event::Timeout { thread, wait } => self.time_out(thread, wait),
                Event::Packet(packet) => self.arrives(packet),
            }
        }
    }

    /// The thread that runs next; time passes until there is one.
    fn next(&mut self) -> usize {
        self.now += SWITCH_NS / 2 + self.chance.below(SWITCH_NS);
        loop {
            self.catch_up();
            let (threads, machines) = (&self.threads, &self.machines);
            let runs = |at: &usize| {
                let on = threads.get(*at).and_then(|thread| machines.get(thread.machine));
                on.is_some_and(crate::machine::Machine::runs)
            };
            let able: Vec<usize> = self.runnable.iter().copied().filter(runs).collect();
            if let Some(next) = self.chance.pick(&able).copied() {
                self.runnable.retain(|thread| *thread != next);
                self.note(self.now ^ ((next as u64) << 48));
                return next;
            }
            match self.events.first_key_value() {
                Some(((at, _), _)) => self.now = self.now.max(*at),
                None => broken("all threads wait, and for nothing that will happen"),
            }
        }
    }

    pub(crate) fn add_thread(&mut self, machine: usize) -> usize {
        self.threads.push(Thread {
            machine,
            baton: Baton::new(),
            state: State::Runs,
            wait: 0,
            timed_out: false,
            handle: 0,
            joining: None,
        });
        self.threads.len() - 1
    }
}

/// Gives the baton to the thread that runs next, and waits for it.
fn switch(mut kernel: Held, me: usize) -> Held {
    let next = kernel.next();
    if next == me {
        return kernel;
    }
    let (theirs, mine) = (kernel.thread(next).baton, kernel.thread(me).baton);
    drop(kernel);
    theirs.pass();
    mine.take();
    let mut kernel = hold();
    bury(&mut kernel);
    kernel
}

/// Waits until the thread is gone that ended last, with the memory that it had of the system: where
/// memory lies is the same for a seed, too, since locks are fair or not by their addresses.
fn bury(kernel: &mut Kernel) {
    if let Some(ended) = kernel.ended.take() {
        // SAFETY: the thread has ended, and no other waits for it.
        unsafe { real::pthread_join(ended, std::ptr::null_mut()) };
    }
}

/// Begins a thread, once it has the baton.
pub(crate) fn begin(mine: &Baton) {
    mine.take();
    bury(&mut hold());
}

/// Waits until the thread is woken, or until `deadline`. True: it was woken.
pub(crate) fn wait(mut kernel: Held, me: usize, on: Wait, deadline: Option<u64>) -> (Held, bool) {
    let thread = kernel.thread(me);
    thread.state = State::Waits(on);
    thread.wait += 1;
    let wait = thread.wait;
    if let Some(deadline) = deadline {
        kernel.schedule(deadline, Event::Timeout { thread: me, wait });
    }
    let mut kernel = switch(kernel, me);
    let woken = !kernel.thread(me).timed_out;
    (kernel, woken)
}

/// Lets other threads run that can.
pub(crate) fn give_way(mut kernel: Held, me: usize) -> Held {
    kernel.runnable.push(me);
    switch(kernel, me)
}

/// Lets other threads run now and then, where a thread has just had an effect on others. A thread
/// that stands still here holds no lock that is the process's and not its machine's.
pub(crate) fn may_give_way(mut kernel: Held, me: usize) {
    let preempted_ppm = kernel.settings.preempted_ppm;
    if kernel.chance.happens(preempted_ppm) {
        drop(give_way(kernel, me));
    }
}

/// Ends a thread.
pub(crate) fn end(mut kernel: Held, me: usize) {
    let thread = kernel.thread(me);
    thread.state = State::Ended;
    if let Some(joining) = thread.joining.take() {
        kernel.wake(joining);
    }
    kernel.ended = Some(kernel.thread(me).handle);
    let next = kernel.next();
    let theirs = kernel.thread(next).baton;
    drop(kernel);
    theirs.pass();
}
