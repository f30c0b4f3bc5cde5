//! Log lines go to the standard error through a thread of their own, so that a slow or closed
//! reader can neither stop nor end this process.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait at most; further lines are dropped and counted.
const MAX_WAITING: usize = 4096;
/// The time for waiting lines at the end of the process.
const LAST_LINES: Duration = Duration::from_millis(500);

/// Takes log lines and never blocks. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LogWriter {
    lines: SyncSender<Vec<u8>>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    taken: AtomicU64,
    written: AtomicU64,
    dropped: AtomicU64,
}

impl LogWriter {
    /// Starts the thread. Lines that `out` refuses, as a closed pipe does, are lost.
    pub(crate) fn start(out: impl Write + Send + 'static) -> std::io::Result<Self> {
        let (lines, waiting) = sync_channel(MAX_WAITING);
        let counts = Arc::new(Counts::default());
        let writing = Arc::clone(&counts);
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_all(&waiting, out, &writing))?;
        Ok(Self { lines, counts })
    }

    /// Gives waiting lines a moment to be written.
    pub(crate) fn finish(&self) {
        let deadline = Instant::now() + LAST_LINES;
        let waits = || {
            self.counts.written.load(Ordering::Acquire) < self.counts.taken.load(Ordering::Acquire)
        };
        while waits() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn take(&self, line: Vec<u8>) {
        self.counts.taken.fetch_add(1, Ordering::Release);
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.lines.try_send(line)
        {
            self.counts.written.fetch_add(1, Ordering::Release);
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn write_all(lines: &Receiver<Vec<u8>>, mut out: impl Write, counts: &Counts) {
    while let Ok(line) = lines.recv() {
        let dropped = counts.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            metrics::counter!("meridian_log_dropped_lines_total").increment(dropped);
            drop(writeln!(
                out,
                "({dropped} log lines were dropped: they were not read fast enough)"
            ));
        }
        drop(out.write_all(&line));
        counts.written.fetch_add(1, Ordering::Release);
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { writer: self, bytes: Vec::new() }
    }
}

/// A log line, queued when it is dropped.
pub(crate) struct Line<'a> {
    writer: &'a LogWriter,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.writer.take(std::mem::take(&mut self.bytes));
        }
    }
}

/// The writer, for code that ends the process without returning to `main`.
static WRITER: Mutex<Option<LogWriter>> = Mutex::new(None);

/// Sets the writer of this process.
pub(crate) fn install(writer: &LogWriter) {
    *WRITER.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer.clone());
}

/// Prints a line through the writer of this process.
pub(crate) fn print(line: &str) {
    let writer = WRITER.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(writer) = writer {
        writer.take(format!("{line}\n").into_bytes());
    }
}

/// [`LogWriter::finish`] of the writer of this process.
pub(crate) fn finish() {
    let writer = WRITER.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(writer) = writer {
        writer.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn line(writer: &LogWriter, text: &str) {
        writer.make_writer().write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn lines_arrive_in_order_and_whole() {
        let out = Shared::default();
        let writer = LogWriter::start(out.clone()).unwrap();
        (0..100).for_each(|n| line(&writer, &format!("{n}\n")));
        writer.finish();
        let expected: String = (0..100).map(|n| format!("{n}\n")).collect();
        assert_eq!(String::from_utf8(out.0.lock().unwrap().clone()).unwrap(), expected);
    }

    #[test]
    fn closed_reader_does_not_end_the_process() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let writer = LogWriter::start(Closed).unwrap();
        (0..10).for_each(|_| line(&writer, "x\n"));
        writer.finish();
        assert_eq!(writer.counts.written.load(Ordering::Relaxed), 10);
    }

    #[test]
    fn stalled_reader_blocks_no_writer_and_gets_the_number_of_dropped_lines() {
        struct Gate(Arc<Mutex<()>>, Shared);
        impl Write for Gate {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                let _open = self.0.lock().unwrap();
                self.1.write(bytes)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let (gate, out) = (Arc::new(Mutex::new(())), Shared::default());
        let writer = LogWriter::start(Gate(Arc::clone(&gate), out.clone())).unwrap();
        let closed = gate.lock().unwrap();
        (0..MAX_WAITING + 100).for_each(|_| line(&writer, "x\n"));
        drop(closed);
        line(&writer, "y\n");
        writer.finish();
        line(&writer, "z\n");
        writer.finish();
        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        assert!(
            text.contains("log lines were dropped"),
            "{}",
            &text[text.len().saturating_sub(200)..]
        );
        assert!(text.lines().filter(|line| *line == "x").count() <= MAX_WAITING + 1);
    }
}
