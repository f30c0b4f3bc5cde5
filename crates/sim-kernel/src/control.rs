//! The scenario's side: beginning a simulation, starting programs on machines, having machines and
//! links fail. The thread that begins is simulated from then on, on a machine of its own.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::chance::Chance;
use crate::doors;
use crate::durable::Durable;
use crate::files::Files;
use crate::kernel::{self, Kernel, State, Wait, broken, hold};
use crate::machine::{Machine, Power};
use crate::network::{Link, Network};
use crate::real;
use crate::settings::{LinkProfile, Settings};

/// A simulated machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineId(usize);

/// How a machine is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// Its processes are killed; its kernel ends their connections.
    Processes,
    /// The machine loses power: others hear nothing of it.
    Power,
}

/// Begins the simulation of this process, of which there is one, in the present thread. From now on
/// the present thread is simulated, on the first machine.
///
/// # Panics
/// When there was a simulation, or when this program was linked without the functions in place of
/// libc's.
pub fn begin(settings: Settings) -> MachineId {
    doors::keep();
    fix_addresses();
    let mut chance = Chance::new(settings.seed);
    let entropy = chance.fork();
    let mut kernel = Kernel {
        now: 0,
        settings,
        chance,
        entropy,
        threads: Vec::new(),
        runnable: Vec::new(),
        events: BTreeMap::new(),
        scheduled: 0,
        machines: vec![Machine::new("scenario", [10, 0, 0, 1])],
        futexes: BTreeMap::new(),
        files: Files::default(),
        network: Network::default(),
        durable: Durable::default(),
        ended: None,
        start_on: None,
        digest: 0xcbf2_9ce4_8422_2325,
    };
    let me = kernel.add_thread(0);
    assert!(kernel::set_up(kernel), "there is one simulation in a process");
    kernel::set_current(Some(me));
    let before = std::time::SystemTime::now();
    let simulated = before
        .duration_since(std::time::UNIX_EPOCH)
        .is_ok_and(|since| (1_893_456_000..1_893_456_001).contains(&since.as_secs()));
    assert!(simulated, "clocks are not simulated: the program's own functions were not linked");
    MachineId(0)
}

/// Begins this process anew where the system has drawn the addresses of its memory: the order in
/// which some locks are had depends on them. Where the system does not permit it, runs of one seed
/// may differ.
fn fix_addresses() {
    const FIXED: &str = "MERIDIAN_SIM_FIXED";
    const ASK: libc::c_ulong = 0xffff_ffff;
    // SAFETY: it has no pointers.
    let persona = unsafe { libc::personality(ASK) };
    if persona & libc::ADDR_NO_RANDOMIZE != 0 || std::env::var_os(FIXED).is_some() {
        return;
    }
    let fixed = libc::c_ulong::try_from(persona | libc::ADDR_NO_RANDOMIZE).unwrap_or(ASK);
    // SAFETY: as above.
    unsafe { libc::personality(fixed) };
    let Ok(program) = std::env::current_exe() else { return };
    let mut again = Command::new(program);
    // It returns only if that failed.
    drop(again.args(std::env::args_os().skip(1)).env(FIXED, "1").exec());
}

/// Whether the present thread is a simulated one.
#[must_use]
pub fn is_running() -> bool {
    kernel::current().is_some()
}

/// A new machine, which runs.
pub fn machine(name: &str, ip: [u8; 4]) -> MachineId {
    let mut kernel = hold();
    kernel.machines.push(Machine::new(name, ip));
    MachineId(kernel.machines.len() - 1)
}

/// Makes the machine's clocks go faster by so many millionths from the beginning of the simulation
/// on, and its wall clock be ahead.
pub fn set_clock(machine: MachineId, drift_ppm: i64, wall_ahead_ms: i64) {
    let mut kernel = hold();
    let machine = kernel.machine(machine.0);
    machine.drift_ppm = drift_ppm;
    machine.wall_ahead_ns = wall_ahead_ms * 1_000_000;
}

/// Starts a thread on a machine. Threads that it starts are on the same machine.
///
/// # Panics
/// When the system has no thread.
pub fn start(machine: MachineId, name: &str, program: impl FnOnce() + Send + 'static) {
    hold().start_on = Some(machine.0);
    let builder = std::thread::Builder::new().name(name.to_owned());
    let started = builder.spawn(program);
    hold().start_on = None;
    assert!(started.is_ok(), "the system starts no thread");
}

/// Does something on another machine: its clocks are read, its sockets are opened.
pub fn on_machine<T>(machine: MachineId, work: impl FnOnce() -> T) -> T {
    let Some(me) = kernel::current() else { broken("a scenario is a simulated thread") };
    let before = std::mem::replace(&mut hold().thread(me).machine, machine.0);
    let done = work();
    hold().thread(me).machine = before;
    done
}

/// Loses a machine's processes with all that they hold in memory.
pub fn crash(machine: MachineId, how: Crash) {
    let mut kernel = hold();
    let lost = machine.0;
    let dead: Vec<usize> = (0..kernel.threads.len())
        .filter(|thread| kernel.threads.get(*thread).is_some_and(|one| one.machine == lost))
        .collect();
    for thread in &dead {
        kernel.thread(*thread).state = State::Ended;
        kernel.thread(*thread).joining = None;
    }
    kernel.runnable.retain(|thread| !dead.contains(thread));
    kernel.futexes.retain(|_, waiting| {
        waiting.retain(|thread| !dead.contains(thread));
        !waiting.is_empty()
    });
    let is_silent = how == Crash::Power;
    kernel.machine(lost).power = if is_silent { Power::Off } else { Power::Killed };
    kernel.lose_connections(lost, is_silent);
    for descriptor in kernel.files.lose(lost) {
        // SAFETY: the descriptor was this kernel's, and no thread that knew it runs any more.
        unsafe { real::close(descriptor) };
    }
}

/// Takes from a folder, and from all that are in it, what a loss of power takes that comes now.
///
/// # Errors
/// The system's.
pub fn lose_unsynced(folder: &Path, chance: &mut Chance) -> io::Result<()> {
    let mut durable = std::mem::take(&mut hold().durable);
    let lost = durable.lose(folder, chance);
    hold().durable = durable;
    lost
}

/// Lets new threads run on a machine that was lost.
pub fn restart(machine: MachineId) {
    let mut kernel = hold();
    let was = std::mem::replace(&mut kernel.machine(machine.0).power, Power::On);
    if was == Power::Off {
        kernel.disown_connections(machine.0);
    }
}

/// Stops all threads of a machine until [`resume`]. Its clocks go on.
pub fn pause(machine: MachineId) {
    let mut kernel = hold();
    let power = &mut kernel.machine(machine.0).power;
    if *power == Power::On {
        *power = Power::Paused;
    }
}

/// Ends a [`pause`].
pub fn resume(machine: MachineId) {
    let mut kernel = hold();
    let power = &mut kernel.machine(machine.0).power;
    if *power == Power::Paused {
        *power = Power::On;
    }
}

/// Sets how long packets from one machine to another take.
pub fn set_link(from: MachineId, to: MachineId, profile: LinkProfile) {
    let mut kernel = hold();
    let link = kernel.link(from.0, to.0);
    let LinkProfile { latency_ns, jitter_ns, lost_ppm } = profile;
    *link = Link { latency_ns, jitter_ns, lost_ppm, is_cut: link.is_cut };
}

/// Lets nothing through from one machine to another until [`heal`].
pub fn cut(from: MachineId, to: MachineId) {
    hold().link(from.0, to.0).is_cut = true;
}

/// Ends a [`cut`]. Bytes sent meanwhile are sent again.
pub fn heal(from: MachineId, to: MachineId) {
    let mut kernel = hold();
    if std::mem::take(&mut kernel.link(from.0, to.0).is_cut) {
        kernel.send_again(from.0, to.0);
    }
}

/// Breaks all connections between two machines.
pub fn sever(one: MachineId, other: MachineId) {
    hold().break_connections(one.0, other.0);
}

/// How long the simulation has lasted.
#[must_use]
pub fn now() -> Duration {
    Duration::from_nanos(hold().now)
}

/// A number that comes from all decisions so far, in their order: two runs that differ in one
/// differ in it.
#[must_use]
pub fn digest() -> u64 {
    hold().digest
}

/// The threads that have not ended, each with its machine and what it waits for.
#[must_use]
pub fn threads() -> Vec<String> {
    let mut kernel = hold();
    let kernel = &mut *kernel;
    let (threads, machines) = (&kernel.threads, &kernel.machines);
    let live = threads.iter().enumerate().filter(|(_, thread)| thread.state != State::Ended);
    live.map(|(at, thread)| {
        let machine = machines.get(thread.machine).map_or("?", |machine| machine.name.as_str());
        let state = match thread.state {
            State::Waits(Wait::Time) => "sleeps".to_owned(),
            other => format!("{other:?}"),
        };
        format!("{at} on {machine}: {state}")
    })
    .collect()
}

/// Ends the process at once: threads of machines that were lost wait for ever.
pub fn exit(status: i32) -> ! {
    use std::io::Write as _;
    kernel::set_current(None);
    drop(std::io::stdout().flush());
    // SAFETY: it does not return, and runs nothing of this process any more.
    unsafe { libc::_exit(status) }
}

/// The machine of the present thread; `None`: it is not simulated.
#[must_use]
pub fn here() -> Option<String> {
    let me = kernel::current()?;
    let mut kernel = hold();
    let machine = kernel.machine_of(me);
    Some(kernel.machine(machine).name.clone())
}
