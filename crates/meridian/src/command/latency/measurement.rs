//! The stages of a run: keys are written and awaited everywhere, the cells of each region are
//! measured, then replication. The keys are removed at the end, also after a failure.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::future::{try_join, try_join_all};
use meridian_bench::tally::Tally;
use tokio_util::sync::CancellationToken;

use super::keys::{Keys, VALUE_BYTES};
use super::probe::Probe;
use super::report::{Operation, Quantiles, RegionDelay, RegionReport, Replication, Report};
use super::site::{Cluster, Site};

/// Requests before each cell that are not measured: they warm connections, caches and hints of the
/// leader.
const WARM_UP_REQUESTS: u32 = 10;
/// The longest time for a write to show in a region.
const MAX_REPLICATION_WAIT: Duration = Duration::from_secs(30);
/// The pause between two reads that wait for a write. Without it, the reads themselves would load
/// the machine.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

pub(super) struct Measurement {
    pub(super) cluster: Cluster,
    /// Requests in each cell.
    pub(super) requests: u32,
    pub(super) replication_writes: u32,
    /// Checked between requests only: a write that was abandoned could arrive after the removal of
    /// its key.
    pub(super) stop: CancellationToken,
}

impl Measurement {
    /// Progress goes to the standard error.
    pub(super) async fn run(&self) -> Result<Report> {
        let probes = self.open_all().await?;
        let database_id = one_database(&probes)?;
        let mut keys = Keys::new();
        let report = self.measure(probes, database_id, &mut keys).await;
        let removed = keys.remove(&self.cluster).await;
        let removed =
            removed.with_context(|| format!("keys were left behind, below [{:?}]", keys.prefix()));
        if let (Err(_), Err(left)) = (&report, &removed) {
            eprintln!("{left:#}");
        }
        let report = report?;
        removed.map(|()| report)
    }

    async fn measure(
        &self,
        probes: Vec<Probe>,
        database_id: String,
        keys: &mut Keys,
    ) -> Result<Report> {
        self.write_keys(probes, keys).await?;
        let mut regions = Vec::with_capacity(self.cluster.sites.len());
        for site in &self.cluster.sites {
            regions.push(self.measure_region(site, keys).await?);
        }
        let replication = if self.replication_writes > 0 {
            Some(self.measure_replication(keys).await?)
        } else {
            None
        };
        Ok(Report {
            database_id,
            primary_region: self.cluster.primary_region.clone(),
            preferred_leader: self.cluster.preferred_leader.clone(),
            requests: self.requests,
            value_bytes: VALUE_BYTES,
            regions,
            replication,
        })
    }

    /// Writes the keys, so that reads find entries in every region.
    async fn write_keys(&self, mut probes: Vec<Probe>, keys: &mut Keys) -> Result<()> {
        let Some(first) = probes.first_mut() else { bail!("there is no gateway to measure") };
        let written = keys.write_all(first).await?;
        let look = keys.body(Operation::EventualRead);
        for probe in &mut probes {
            self.shown(probe, &look, &written, Instant::now()).await?;
        }
        Ok(())
    }

    async fn open_all(&self) -> Result<Vec<Probe>> {
        try_join_all(
            self.cluster.sites.iter().map(|site| Probe::open(site, &self.cluster.access_token)),
        )
        .await
    }

    async fn measure_region(&self, site: &Site, keys: &mut Keys) -> Result<RegionReport> {
        // Opened anew for each region: the others take minutes, and gateways cut idle connections.
        let mut probe = Probe::open(site, &self.cluster.access_token).await?;
        let (round_trip, eventual_read) = self.measure_eventual(&mut probe, keys).await?;
        Ok(RegionReport {
            region: site.region.clone(),
            url: site.url.clone(),
            wan_round_trips: site.wan_round_trips,
            round_trip,
            eventual_read,
            strong_read: self.measure_cell(&mut probe, keys, Operation::StrongRead).await?,
            write: self.measure_cell(&mut probe, keys, Operation::Write).await?,
        })
    }

    /// The client's own round trips and eventual reads in turn: they are compared with each other,
    /// and both depend on how busy the machine is.
    async fn measure_eventual(
        &self,
        probe: &mut Probe,
        keys: &mut Keys,
    ) -> Result<(Quantiles, Quantiles)> {
        self.progress(probe, Operation::EventualRead);
        let (mut round_trips, mut reads) = (Tally::new()?, Tally::new()?);
        for request in 0..WARM_UP_REQUESTS + self.requests {
            let round_trip = self.timed(probe, keys, Operation::RoundTrip).await?;
            let read = self.timed(probe, keys, Operation::EventualRead).await?;
            if request >= WARM_UP_REQUESTS {
                round_trips.success(round_trip, true);
                reads.success(read, true);
            }
        }
        Ok((Quantiles::from(&round_trips), Quantiles::from(&reads)))
    }

    async fn measure_cell(
        &self,
        probe: &mut Probe,
        keys: &mut Keys,
        operation: Operation,
    ) -> Result<Quantiles> {
        self.progress(probe, operation);
        let mut tally = Tally::new()?;
        for request in 0..WARM_UP_REQUESTS + self.requests {
            let latency = self.timed(probe, keys, operation).await?;
            if request >= WARM_UP_REQUESTS {
                tally.success(latency, true);
            }
        }
        Ok(Quantiles::from(&tally))
    }

    fn progress(&self, probe: &Probe, operation: Operation) {
        eprintln!("{}: {}, {} requests", probe.region, operation.name(), self.requests);
    }

    async fn timed(
        &self,
        probe: &mut Probe,
        keys: &mut Keys,
        operation: Operation,
    ) -> Result<Duration> {
        self.check_stop()?;
        let body = keys.body(operation);
        let begun = Instant::now();
        probe.call(operation, body).await?;
        Ok(begun.elapsed())
    }

    async fn measure_replication(&self, keys: &Keys) -> Result<Replication> {
        // A second connection to the first region: while one writes, the other reads already.
        let (mut probes, mut writer) = try_join(self.open_all(), self.open_first()).await?;
        eprintln!("replication from {}: {} writes", writer.region, self.replication_writes);
        let mut keys = keys.first_only();
        let look = keys.body(Operation::EventualRead);
        let mut tallies = Vec::with_capacity(probes.len());
        for _ in &probes {
            tallies.push(Tally::new()?);
        }
        for _ in 0..self.replication_writes {
            self.check_stop()?;
            let written = writer.call(Operation::Write, keys.body(Operation::Write)).await?;
            let acknowledged = Instant::now();
            let looks =
                probes.iter_mut().map(|probe| self.shown(probe, &look, &written, acknowledged));
            for (tally, delay) in tallies.iter_mut().zip(try_join_all(looks).await?) {
                tally.success(delay, true);
            }
        }
        let delay = |(probe, tally): (&Probe, &Tally)| RegionDelay {
            region: probe.region.clone(),
            delay: Quantiles::from(tally),
        };
        Ok(Replication {
            from_region: writer.region.clone(),
            writes: self.replication_writes,
            regions: probes.iter().zip(&tallies).map(delay).collect(),
        })
    }

    async fn open_first(&self) -> Result<Probe> {
        let first = self.cluster.sites.first().context("there is no gateway to measure")?;
        Probe::open(first, &self.cluster.access_token).await
    }

    /// Reads with `look` until the key has a version no older than `written`; returns the time
    /// since then.
    async fn shown(
        &self,
        probe: &mut Probe,
        look: &Bytes,
        written: &Bytes,
        since: Instant,
    ) -> Result<Duration> {
        loop {
            let seen = probe.look(look.clone()).await?;
            let delay = since.elapsed();
            if seen.is_some_and(|seen| seen >= *written) {
                return Ok(delay);
            }
            if delay > MAX_REPLICATION_WAIT {
                bail!("{}: a write did not show within {MAX_REPLICATION_WAIT:?}", probe.region);
            }
            self.check_stop()?;
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    fn check_stop(&self) -> Result<()> {
        if self.stop.is_cancelled() {
            bail!("interrupted");
        }
        Ok(())
    }
}

/// The id of the database, which must be the same at all gateways.
fn one_database(probes: &[Probe]) -> Result<String> {
    let Some(first) = probes.first() else { bail!("there is no gateway to measure") };
    for probe in probes {
        if probe.database_id != first.database_id {
            bail!(
                "{} has the database {}, and {} has {}: not one cluster",
                probe.region,
                probe.database_id,
                first.region,
                first.database_id
            );
        }
    }
    Ok(first.database_id.clone())
}
