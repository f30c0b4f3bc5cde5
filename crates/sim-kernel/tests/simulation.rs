//! Programs of threads and of tokio on simulated machines. Each simulation has a process of its
//! own, which is this one again.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant, SystemTime};

use meridian_sim_kernel as kernel;
use meridian_sim_kernel::{Crash, LinkProfile, MachineId, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Names the test whose simulation this process is, and its seed.
const CHILD: &str = "MERIDIAN_TEST_SIMULATION";
const SEED: &str = "MERIDIAN_TEST_SEED";
const FAR: LinkProfile = LinkProfile { latency_ns: 20_000_000, jitter_ns: 1, lost_ppm: 0 };
const SERVER: [u8; 4] = [10, 1, 0, 1];

/// The output of a simulation.
fn simulated(test: &str, seed: u64, scenario: fn()) -> String {
    if std::env::var(CHILD).is_ok_and(|child| child == test) {
        kernel::begin(Settings {
            seed: std::env::var(SEED).unwrap().parse().unwrap(),
            link: LinkProfile { latency_ns: 1_000_000, jitter_ns: 500_000, lost_ppm: 0 },
            fsync_ns: 1_000_000..=2_000_000,
            preempted_ppm: 10_000,
        });
        scenario();
        println!("decisions {:x} after {:?}", kernel::digest(), kernel::now());
        kernel::exit(0);
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(CHILD, test)
        .env(SEED, seed.to_string())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{test} with seed {seed}: {:?}\n{error}", child.status);
    let said = String::from_utf8(child.stdout).unwrap();
    // The harness may say that a test takes long, which is no word of the simulation.
    said.lines().filter(|line| !line.starts_with("test ")).map(|line| format!("{line}\n")).collect()
}

/// Waits as the main thread of a machine, with a runtime like that of a server.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    threads.worker_threads(2).enable_all().build().unwrap().block_on(work)
}

fn threads_with_locks() {
    let machine = kernel::machine("a", [10, 1, 0, 1]);
    let shared = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
    for number in 0..3 {
        let shared = Arc::clone(&shared);
        kernel::start(machine, "several", move || {
            let threads = (0..3).map(|part| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || {
                    for _ in 0..4 {
                        std::thread::sleep(Duration::from_millis(3));
                        shared.0.lock().unwrap().push(10 * number + part);
                        shared.1.notify_all();
                    }
                })
            });
            threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
        });
    }
    let mut order = shared.0.lock().unwrap();
    while order.len() < 36 {
        (order, _) = shared.1.wait_timeout(order, Duration::from_millis(1)).unwrap();
    }
    println!("{order:?} {:?}", HashMap::<_, _>::from_iter((0..9).map(|number| (number, number))));
}

#[test]
fn threads_run_in_an_order_that_the_seed_alone_decides() {
    let run = |seed| {
        simulated("threads_run_in_an_order_that_the_seed_alone_decides", seed, threads_with_locks)
    };
    let first = run(1);
    assert_eq!(first, run(1));
    assert_ne!(first, run(2));
}

fn hours() {
    let (began, wall) = (Instant::now(), SystemTime::now());
    std::thread::sleep(Duration::from_secs(3600));
    let (passed, on_the_wall) = (began.elapsed(), wall.elapsed().unwrap());
    assert!(passed >= Duration::from_secs(3600) && passed < Duration::from_secs(3601));
    assert!(on_the_wall >= Duration::from_secs(3600) && on_the_wall < Duration::from_secs(3601));
    // A machine whose clocks go at half the speed sleeps for twice as long.
    let slow = kernel::machine("slow", [10, 1, 0, 1]);
    kernel::set_clock(slow, -500_000, 0);
    let (said, says) = mpsc::channel();
    let began = kernel::now();
    kernel::start(slow, "sleeper", move || {
        let own = Instant::now();
        std::thread::sleep(Duration::from_secs(100));
        said.send(own.elapsed().as_secs()).unwrap();
    });
    assert_eq!(says.recv(), Ok(100));
    assert_eq!((kernel::now() - began).as_secs(), 200);
}

#[test]
fn time_passes_when_no_thread_can_run() {
    let began = Instant::now();
    simulated("time_passes_when_no_thread_can_run", 1, hours);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

/// A server that answers each byte by the next, on a machine of its own, and how often it did.
fn server() -> (MachineId, MachineId, Arc<AtomicU32>) {
    let (server, client) =
        (kernel::machine("server", SERVER), kernel::machine("client", [10, 1, 0, 2]));
    kernel::set_link(server, client, FAR);
    kernel::set_link(client, server, FAR);
    let answered = Arc::new(AtomicU32::new(0));
    serve(server, &answered);
    (server, client, answered)
}

fn serve(machine: MachineId, answered: &Arc<AtomicU32>) {
    let answered = Arc::clone(answered);
    kernel::start(machine, "server", move || {
        block_on(async {
            let listener = TcpListener::bind(SocketAddr::from((SERVER, 80))).await.unwrap();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let answered = Arc::clone(&answered);
                tokio::spawn(async move {
                    let mut bytes = vec![0; 64 << 10];
                    while let Ok(count @ 1..) = stream.read(&mut bytes).await {
                        bytes[..count].iter_mut().for_each(|byte| *byte += 1);
                        if stream.write_all(&bytes[..count]).await.is_err() {
                            return;
                        }
                        answered.fetch_add(u32::try_from(count).unwrap(), Ordering::Relaxed);
                    }
                });
            }
        });
    });
}

async fn dial() -> std::io::Result<TcpStream> {
    TcpStream::connect(SocketAddr::from((SERVER, 80))).await
}

async fn ask(stream: &mut TcpStream, byte: u8) -> std::io::Result<u8> {
    stream.write_u8(byte).await?;
    stream.read_u8().await
}

/// Has a client do something, and waits until it has.
fn on_client(client: MachineId, program: impl Future<Output = ()> + Send + 'static) {
    let (done, is_done) = mpsc::channel();
    kernel::start(client, "client", move || {
        block_on(program);
        done.send(()).unwrap();
    });
    is_done.recv().unwrap();
}

fn conversation() {
    let (_, client, answered) = server();
    std::thread::sleep(Duration::from_secs(1));
    on_client(client, async move {
        let began = Instant::now();
        let mut stream = dial().await.unwrap();
        for byte in 0..5u8 {
            assert_eq!(ask(&mut stream, byte).await.unwrap(), byte + 1);
        }
        // Six times there and back.
        let took = began.elapsed();
        assert!(took > Duration::from_millis(240) && took < Duration::from_millis(260), "{took:?}");
        let large = dial().await.unwrap();
        let (mut read, mut write) = large.into_split();
        let sending = tokio::spawn(async move { write.write_all(&[7; 5 << 20]).await });
        let mut answers = vec![0; 5 << 20];
        read.read_exact(&mut answers).await.unwrap();
        assert!(answers.iter().all(|byte| *byte == 8));
        sending.await.unwrap().unwrap();
    });
    assert_eq!(answered.load(Ordering::Relaxed), 5 + (5 << 20));
    println!("{}", kernel::threads().len());
}

#[test]
fn bytes_arrive_in_their_order_after_the_latency_of_the_link() {
    let run =
        || simulated("bytes_arrive_in_their_order_after_the_latency_of_the_link", 3, conversation);
    assert_eq!(run(), run());
}

fn cut_and_crashed() {
    let (server, client, answered) = server();
    std::thread::sleep(Duration::from_secs(1));
    let bytes = Arc::clone(&answered);
    on_client(client, async move {
        let mut stream = dial().await.unwrap();
        assert_eq!(ask(&mut stream, 1).await.unwrap(), 2);
        kernel::cut(client, server);
        let lost = tokio::time::timeout(Duration::from_secs(5), ask(&mut stream, 2)).await;
        assert!(lost.is_err(), "a cut link lets nothing through");
        kernel::heal(client, server);
        assert_eq!(stream.read_u8().await.unwrap(), 3, "held bytes are sent again");
        kernel::crash(server, Crash::Processes);
        assert!(ask(&mut stream, 3).await.is_err(), "the kernel of the killed server says so");
        assert_eq!(dial().await.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
        kernel::restart(server);
        serve(server, &bytes);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut stream = dial().await.unwrap();
        kernel::crash(server, Crash::Power);
        let nothing = tokio::time::timeout(Duration::from_secs(5), dial()).await;
        assert!(nothing.is_err(), "a machine without power answers nothing");
        let nothing = tokio::time::timeout(Duration::from_secs(5), ask(&mut stream, 4)).await;
        assert!(nothing.is_err(), "not even that it knows no such connection");
        kernel::restart(server);
        assert!(stream.read_u8().await.is_err(), "as it does when it is there again");
    });
    assert_eq!(answered.load(Ordering::Relaxed), 2);
}

#[test]
fn cut_links_and_lost_machines_are_silent_and_killed_processes_are_not() {
    let test = "cut_links_and_lost_machines_are_silent_and_killed_processes_are_not";
    let run = || simulated(test, 5, cut_and_crashed);
    assert_eq!(run(), run());
}

fn paused() {
    let machine = kernel::machine("a", [10, 1, 0, 1]);
    let turns = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&turns);
    kernel::start(machine, "counter", move || {
        loop {
            std::thread::sleep(Duration::from_millis(10));
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    let after = |wait| {
        std::thread::sleep(Duration::from_secs(wait));
        turns.load(Ordering::Relaxed)
    };
    let before = after(1);
    assert!(before > 90, "{before}");
    kernel::pause(machine);
    let paused = turns.load(Ordering::Relaxed);
    assert_eq!(after(10), paused);
    kernel::resume(machine);
    assert!(after(1) > paused + 90);
    kernel::crash(machine, Crash::Power);
    let dead = turns.load(Ordering::Relaxed);
    assert_eq!(after(10), dead);
}

#[test]
fn paused_machine_stands_still_and_a_lost_one_for_ever() {
    simulated("paused_machine_stands_still_and_a_lost_one_for_ever", 1, paused);
}

/// A server whose answers come from the threads that may block.
fn serve_slowly(machine: MachineId, address: SocketAddr) {
    kernel::start(machine, "server", move || {
        block_on(async {
            let listener = TcpListener::bind(address).await.unwrap();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    while let Ok(byte) = stream.read_u8().await {
                        let work = move || {
                            std::thread::sleep(Duration::from_micros(300));
                            byte + 1
                        };
                        let answer = tokio::task::spawn_blocking(work).await.unwrap();
                        if stream.write_u8(answer).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
    });
}

async fn ask_often(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    for byte in 0..10 {
        ask(&mut stream, byte).await?;
    }
    Ok(())
}

fn trouble() {
    let address = |number: u8| SocketAddr::from(([10, 1, 0, number], 80));
    let servers: Vec<MachineId> =
        (1..=3).map(|number| kernel::machine("server", [10, 1, 0, number])).collect();
    for (number, machine) in (1..).zip(&servers) {
        serve_slowly(*machine, address(number));
    }
    let clients = kernel::machine("clients", [10, 2, 0, 1]);
    let counts = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
    let counted = Arc::clone(&counts);
    kernel::start(clients, "clients", move || {
        block_on(async {
            let client = |number: u8| {
                let counted = Arc::clone(&counted);
                tokio::spawn(async move {
                    for round in number.. {
                        let asking = ask_often(address(1 + round % 3));
                        let asked = tokio::time::timeout(Duration::from_millis(300), asking).await;
                        let failed = usize::from(!matches!(asked, Ok(Ok(()))));
                        counted[failed].fetch_add(1, Ordering::Relaxed);
                    }
                })
            };
            for client in (0..6).map(client).collect::<Vec<_>>() {
                client.await.unwrap();
            }
        });
    });
    let mut chance = kernel::Chance::new(1);
    for _ in 0..12 {
        let at = usize::try_from(chance.below(3)).unwrap();
        let (machine, number) = (servers[at], u8::try_from(at + 1).unwrap());
        let mut wait = || std::thread::sleep(Duration::from_millis(chance.below(400)));
        wait();
        match number % 3 {
            0 => kernel::crash(machine, Crash::Power),
            1 => kernel::crash(machine, Crash::Processes),
            _ => kernel::cut(machine, clients),
        }
        wait();
        match number % 3 {
            0 | 1 => {
                kernel::restart(machine);
                serve_slowly(machine, address(number));
            }
            _ => kernel::heal(machine, clients),
        }
    }
    println!("{counts:?}");
    assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) > 0));
}

#[test]
fn runtimes_with_blocking_threads_do_the_same_again_whatever_crashes() {
    let test = "runtimes_with_blocking_threads_do_the_same_again_whatever_crashes";
    for seed in 0..3 {
        assert_eq!(simulated(test, seed, trouble), simulated(test, seed, trouble));
    }
}

fn written() {
    let machine = kernel::machine("a", [10, 1, 0, 1]);
    let folder = std::env::temp_dir().join(format!("meridian-sim-kernel-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let to = folder.clone();
    kernel::start(machine, "writer", move || {
        let write = |name: &str, content: &str| {
            let mut file = File::create(to.join(name)).unwrap();
            file.write_all(content.as_bytes()).unwrap();
            file
        };
        let replace = |content: &str| {
            let file = write("new", content);
            std::fs::rename(to.join("new"), to.join("replaced")).unwrap();
            file
        };
        write("kept", "all").sync_all().unwrap();
        replace("before").sync_all().unwrap();
        File::open(&to).unwrap().sync_all().unwrap();
        replace("after").sync_all().unwrap();
        drop(write("lost", "much"));
    });
    std::thread::sleep(Duration::from_secs(1));
    kernel::crash(machine, Crash::Power);
    let mut chance = kernel::Chance::new(std::env::var(SEED).unwrap().parse().unwrap());
    kernel::lose_unsynced(&folder, &mut chance).unwrap();
    let left = |name| std::fs::read_to_string(folder.join(name)).unwrap_or("-".to_owned());
    println!("\nkept {} replaced {} lost {}", left("kept"), left("replaced"), left("lost"));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn loss_of_power_takes_no_synced_content_and_no_synced_name_and_any_other() {
    let name = "loss_of_power_takes_no_synced_content_and_no_synced_name_and_any_other";
    let mut seen = BTreeSet::new();
    for seed in 0..24 {
        let told = simulated(name, seed, written);
        let line = told.lines().find(|line| line.starts_with("kept")).unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!(words[1], "all", "{line}");
        assert!(["before", "after"].contains(&words[3]), "{line}");
        seen.extend([words[3].to_owned(), words[5].to_owned()]);
    }
    for possible in ["before", "after", "-", "", "much"] {
        assert!(seen.contains(possible), "{possible} is not among {seen:?}");
    }
}
