//! The whole run: metadata, key space, cells.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use crate::cell::Cell;
use crate::error::BenchError;
use crate::key_space::KeySpace;
use crate::load;
use crate::options::{HttpVersion, Operation, Options, Protocol};
use crate::report::{Report, Server, Settings};
use crate::session::{Destination, Session};

/// Measures all cells, until `stopped` becomes true. Returns both a report and an error if the run
/// failed after some cells. Progress goes to the standard error.
pub async fn run(
    options: &Options,
    mut stopped: watch::Receiver<bool>,
) -> (Option<Report>, Option<BenchError>) {
    let mut report = None;
    let failure = measure_all(options, &mut stopped, &mut report).await.err();
    (report.filter(|report| !report.cells.is_empty()), failure)
}

async fn measure_all(
    options: &Options,
    stopped: &mut watch::Receiver<bool>,
    report: &mut Option<Report>,
) -> Result<(), BenchError> {
    let http = options.http_versions().first().copied().unwrap_or(HttpVersion::H1);
    let space = KeySpace::new(&options.key_prefix, options.keys);
    let prepared = tokio::select! {
        prepared = prepare(options, &space, http) => prepared,
        _ = stopped.wait_for(|stopped| *stopped) => Err(BenchError::Interrupted),
    };
    let report = report.insert(new_report(options, &prepared?));
    if options.load_only {
        return Ok(());
    }
    for cell in Cell::all(options) {
        eprintln!(
            "measuring {} over {}, {} connections",
            cell.operation.name(),
            cell.http.name(),
            cell.connections
        );
        // Opened anew for each cell: a run may outlast a token.
        let session = Session::open(options, http).await?;
        let destination = session.destination(cell.operation, options)?;
        report.cells.extend(cell.measure(options, destination, stopped).await?);
        if *stopped.borrow() {
            report.interrupted = true;
            break;
        }
    }
    if report.cells.is_empty() { Err(BenchError::Interrupted) } else { Ok(()) }
}

/// Checks before the first cell whether all of them can be measured, and loads the key space.
async fn prepare(
    options: &Options,
    space: &KeySpace,
    http: HttpVersion,
) -> Result<Session, BenchError> {
    let session = Session::open(options, http).await?;
    for operation in &options.operations {
        session.destination(*operation, options)?;
    }
    if (options.reads() || options.load_only) && !options.skip_load {
        let strong = session.destination(Operation::Write, options)?;
        let databases = match strong.more.len() {
            0 => String::new(),
            more => format!(" into each of {} databases", more + 1),
        };
        eprintln!("loading {} keys{databases}", space.count());
        if options.protocol == Protocol::Etcd {
            // The member has applied the writes that it acknowledged: its own state shows the keys,
            // too.
            load::write_etcd_keys(options, space, strong).await?;
            return Ok(session);
        }
        let versionstamps = load::write_keys(options, space, strong, http).await?;
        if options.operations.contains(&Operation::EventualRead) {
            let eventual = session.destination(Operation::EventualRead, options)?;
            load::await_replication(options, space, eventual, http, &versionstamps).await?;
        }
    }
    Ok(session)
}

fn new_report(options: &Options, session: &Session) -> Report {
    let url = |destination: &Option<Destination>| {
        destination.as_ref().map(|found| found.endpoint.to_string())
    };
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
