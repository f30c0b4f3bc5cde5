//! The whole run: metadata, key space, cells.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use crate::bodies::{ReadBodies, WriteBodies};
use crate::cell::{Cell, Destination};
use crate::error::BenchError;
use crate::key_space::KeySpace;
use crate::load;
use crate::metadata::Metadata;
use crate::operation::Requests;
use crate::options::{HttpVersion, Operation, Options};
use crate::report::{Report, Server, Settings};

/// What the metadata exchanges lead to.
#[derive(Debug)]
struct Session {
    database_id: String,
    version: u64,
    strong: Option<Destination>,
    eventual: Option<Destination>,
}

/// Measures all cells, until `stopped` becomes true. Both answers are given if the run failed after
/// something had been measured. Progress goes to stderr.
pub async fn run(options: &Options, mut stopped: watch::Receiver<bool>) -> (Option<Report>, Option<BenchError>) {
    let mut report = None;
    let failure = measure_all(options, &mut stopped, &mut report).await.err();
    (report.filter(|report| !report.cells.is_empty()), failure)
}

async fn measure_all(
    options: &Options,
    stopped: &mut watch::Receiver<bool>,
    report: &mut Option<Report>,
) -> Result<(), BenchError> {
    let http = options.http.first().copied().unwrap_or(HttpVersion::H1);
    let space = KeySpace::new(&options.key_prefix, options.keys);
    let prepared = tokio::select! {
        prepared = prepare(options, &space, http) => prepared,
        _ = stopped.wait_for(|stopped| *stopped) => Err(BenchError::Interrupted),
    };
    let report = report.insert(new_report(options, &prepared?));
    let reads = ReadBodies::new(&space);
    for cell in Cell::all(options) {
        eprintln!("measuring {} over {}, {} connections", cell.operation.name(), cell.http.name(), cell.connections);
        // Anew for each cell: a run may outlast a token.
        let session = Session::open(options, http).await?;
        let requests = match cell.operation {
            Operation::Write => Requests::Write(WriteBodies::new(&space, options.value_bytes, options.value_kind)),
            Operation::StrongRead => Requests::Read { bodies: reads.clone(), strong: true },
            Operation::EventualRead => Requests::Read { bodies: reads.clone(), strong: false },
        };
        let destination = session.destination(cell.operation, options)?;
        report.cells.extend(cell.measure(options, destination, &requests, stopped).await?);
        if *stopped.borrow() {
            report.interrupted = true;
            break;
        }
    }
    if report.cells.is_empty() { Err(BenchError::Interrupted) } else { Ok(()) }
}

/// Finds out before the first cell whether all of them can be measured, and loads the key space.
async fn prepare(options: &Options, space: &KeySpace, http: HttpVersion) -> Result<Session, BenchError> {
    let session = Session::open(options, http).await?;
    for operation in &options.operations {
        session.destination(*operation, options)?;
    }
    if options.reads() && !options.skip_load {
        eprintln!("loading {} keys", space.count());
        let strong = session.destination(Operation::Write, options)?;
        let versionstamp = load::write_keys(options, space, strong, http).await?;
        if options.operations.contains(&Operation::EventualRead) {
            let eventual = session.destination(Operation::EventualRead, options)?;
            load::await_replication(options, space, eventual, http, &versionstamp).await?;
        }
    }
    Ok(session)
}

impl Session {
    async fn open(options: &Options, http: HttpVersion) -> Result<Self, BenchError> {
        let main = Metadata::exchange(&options.url, &options.access_token, http, options.timeout).await?;
        let destination = |endpoint: Option<_>, metadata: &Metadata| {
            endpoint.map(|endpoint| Destination { endpoint, headers: metadata.headers.clone() })
        };
        let mut eventual = destination(main.eventual.clone(), &main);
        if let Some(url) = &options.eventual_url {
            let other = Metadata::exchange(url, &options.access_token, http, options.timeout).await?;
            if other.database_id != main.database_id {
                return Err(BenchError::DifferentDatabases(main.database_id, other.database_id));
            }
            // A URL with `?consistency=eventual` offers eventual reads at an endpoint marked strong.
            eventual = destination(other.eventual.clone().or_else(|| other.first.clone()), &other);
        }
        let strong = destination(main.strong.clone(), &main);
        Ok(Self { database_id: main.database_id, version: main.version, strong, eventual })
    }

    fn destination(&self, operation: Operation, options: &Options) -> Result<&Destination, BenchError> {
        match operation {
            Operation::Write | Operation::StrongRead => {
                self.strong.as_ref().ok_or_else(|| BenchError::NoStrongEndpoint(options.url.clone()))
            }
            Operation::EventualRead => self.eventual.as_ref().ok_or_else(|| {
                BenchError::NoEventualEndpoint(options.eventual_url.as_ref().unwrap_or(&options.url).clone())
            }),
        }
    }
}

fn new_report(options: &Options, session: &Session) -> Report {
    let url = |destination: &Option<Destination>| destination.as_ref().map(|found| found.endpoint.to_string());
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Report {
        started_at_unix_ms: u64::try_from(since_epoch.as_millis()).unwrap_or(0),
        interrupted: false,
        settings: Settings::new(options),
        server: Server {
            database_id: session.database_id.clone(),
            protocol_version: session.version,
            strong_endpoint: url(&session.strong),
            eventual_endpoint: url(&session.eventual),
        },
        cells: Vec::new(),
    }
}
