//! The steps of a script.

use std::collections::BTreeSet;
use std::time::Duration;

use meridian_directory::{Change, Database, FailoverMode, Phase, Rpo, Shard};
use meridian_types::{DatabaseId, Quotas, V8Format};
use uuid::Uuid;

use super::{PATIENCE, Stage, StageError};
use crate::network::Machine;
use crate::operator::OperatorError;
use crate::poll;
use crate::report::MarkKind;
use crate::roles::Selector;
use crate::script::{Action, Delay, Target};

const SWITCH_DEADLINE: Duration = Duration::from_secs(60);
const SHARDS_DEADLINE: Duration = Duration::from_secs(60);
/// The aim for the loss of a region.
const MOVE_DEADLINE: Duration = Duration::from_secs(10);
/// The author of a drill's orders in the directory's record.
const ACTOR: &str = "drill";

impl Stage<'_> {
    pub(super) async fn carry_out(&mut self) -> Result<(), StageError> {
        let script = &self.drill.script;
        for step in &script.steps {
            let delay = match (step.after, self.options.hold) {
                (Delay::Hold, Some(hold)) => hold,
                (after, _) => script.delay(after),
            };
            tokio::time::sleep(delay).await;
            let done = self.act(&step.action).await;
            done.map_err(|source| StageError::Step {
                step: step.action.to_string(),
                source: Box::new(source),
            })?;
        }
        Ok(())
    }

    async fn act(&mut self, action: &Action) -> Result<(), StageError> {
        match action {
            Action::Nothing => Ok(()),
            Action::PowerOff(parts) => self.lose(parts, "power off", Self::power_off),
            Action::Kill(parts) => self.lose(parts, "kill", Self::kill),
            Action::Pause(parts) => self.lose(parts, "pause", Self::pause),
            Action::Stop(parts) => {
                for machine in self.announce(MarkKind::Fault, "stop", parts)? {
                    self.stop(machine).await?;
                }
                Ok(())
            }
            Action::Start(parts) => {
                let machines = self.announce(MarkKind::Heal, "start", parts)?;
                machines.into_iter().try_for_each(|machine| self.start(machine))
            }
            Action::Resume(parts) => {
                let machines = self.announce(MarkKind::Heal, "resume", parts)?;
                machines.into_iter().try_for_each(|machine| self.resume(machine))
            }
            Action::Roll(parts) => self.roll(parts).await,
            Action::Cut { parts, others, one_way } => self.cut(parts, others, *one_way),
            Action::Throttle { parts, others, bytes_per_second } => {
                let machines = self.roles.resolve(parts, &[])?;
                let others = self.roles.resolve(others, &machines)?;
                self.mark(
                    MarkKind::Fault,
                    format!("throttle {} to {bytes_per_second} bytes/s", named(&machines)),
                );
                self.cluster.network_mut()?.throttle(&machines, &others, *bytes_per_second);
                Ok(())
            }
            Action::Heal => {
                self.mark(MarkKind::Heal, "heal".to_owned());
                self.heal()
            }
            Action::Switch(target) => self.switch(*target).await,
            Action::RotateAuthority => {
                self.mark(MarkKind::Fault, "replace the cluster's authority".to_owned());
                self.cluster.rotate_authority().await?;
                self.mark(MarkKind::Phase, "the former authority is not believed".to_owned());
                Ok(())
            }
            Action::Shards(count) => self.make_shards(*count).await,
            Action::Await(condition) => {
                self.wait_for(*condition).await?;
                self.mark(MarkKind::Phase, action.to_string());
                Ok(())
            }
            Action::Measure => {
                self.fault_at = self.workload.origin().elapsed();
                self.mark(MarkKind::Phase, "what follows is measured".to_owned());
                Ok(())
            }
        }
    }

    /// Starts, resumes and heals all machines and links.
    pub(super) fn heal(&mut self) -> Result<(), StageError> {
        self.cluster.network_mut()?.heal();
        for machine in self.cluster.machines() {
            if self.cluster.is_paused(machine) {
                self.resume(machine)?;
            } else if !self.cluster.runs(machine) {
                self.start(machine)?;
            }
        }
        Ok(())
    }

    fn announce(
        &mut self,
        kind: MarkKind,
        verb: &str,
        parts: &[Selector],
    ) -> Result<Vec<Machine>, StageError> {
        let machines = self.roles.resolve(parts, &[])?;
        self.mark(kind, format!("{verb} {}", named(&machines)));
        Ok(machines)
    }

    /// Clients lose their connections to the machines.
    fn lose(
        &mut self,
        parts: &[Selector],
        verb: &str,
        act: impl Fn(&mut Self, &[Machine]) -> Result<(), StageError>,
    ) -> Result<(), StageError> {
        let machines = self.announce(MarkKind::Fault, verb, parts)?;
        for machine in &machines {
            if let Some(gateway) = self.gateways.of(*machine) {
                gateway.lose();
            }
        }
        act(self, &machines)
    }

    fn power_off(&mut self, machines: &[Machine]) -> Result<(), StageError> {
        for machine in machines {
            self.cluster.network_mut()?.darken(*machine);
        }
        self.kill(machines)
    }

    fn kill(&mut self, machines: &[Machine]) -> Result<(), StageError> {
        // All at one moment: none should live to see another go.
        self.pause(machines)?;
        Ok(machines.iter().try_for_each(|machine| self.cluster.kill(*machine))?)
    }

    fn pause(&mut self, machines: &[Machine]) -> Result<(), StageError> {
        Ok(machines.iter().try_for_each(|machine| self.cluster.pause(*machine))?)
    }

    /// Stops a machine in an orderly way: clients send no new requests to its gateway, and requests
    /// in flight are finished.
    async fn stop(&mut self, machine: Machine) -> Result<(), StageError> {
        if let Some(gateway) = self.gateways.of(machine) {
            gateway.drain();
        }
        self.cluster.stop_and_wait(machine).await?;
        Ok(())
    }

    fn start(&mut self, machine: Machine) -> Result<(), StageError> {
        self.cluster.network_mut()?.lighten(machine);
        self.cluster.restart(machine)?;
        if let Some(gateway) = self.gateways.of(machine) {
            gateway.restarted();
            self.returning.push(machine);
        }
        Ok(())
    }

    fn resume(&mut self, machine: Machine) -> Result<(), StageError> {
        self.cluster.resume(machine)?;
        if let Some(gateway) = self.gateways.of(machine) {
            gateway.put_up();
        }
        Ok(())
    }

    async fn roll(&mut self, parts: &[Selector]) -> Result<(), StageError> {
        for machine in self.roles.resolve(parts, &[])? {
            self.mark(MarkKind::Fault, format!("restart {machine}"));
            self.stop(machine).await?;
            self.start(machine)?;
            self.readmit().await?;
        }
        Ok(())
    }

    /// Returns clients to the started gateways, each as soon as it serves.
    pub(super) async fn readmit(&mut self) -> Result<(), StageError> {
        for machine in std::mem::take(&mut self.returning) {
            self.cluster.machine_ready(machine).await?;
            if let Some(gateway) = self.gateways.of(machine) {
                gateway.put_up();
            }
        }
        Ok(())
    }

    fn cut(
        &mut self,
        parts: &[Selector],
        others: &[Selector],
        one_way: bool,
    ) -> Result<(), StageError> {
        let machines = self.roles.resolve(parts, &[])?;
        let others = self.roles.resolve(others, &machines)?;
        let text = if one_way { "cut what is sent by" } else { "cut off" };
        self.mark(MarkKind::Fault, format!("{text} {}", named(&machines)));
        let network = self.cluster.network_mut()?;
        network.cut(&machines, &others);
        if !one_way {
            network.cut(&others, &machines);
        }
        Ok(())
    }

    async fn make_shards(&mut self, count: u32) -> Result<(), StageError> {
        let home = format!("region-{}", self.roles.home + 1);
        let mut cluster = self.cluster.operator().inspect(PATIENCE).await?.cluster;
        for number in 1..=count {
            if cluster.shards.len() >= usize::try_from(count).unwrap_or(usize::MAX) {
                break;
            }
            let database = Database {
                name: format!("more-{number}"),
                // The directory chooses the shard.
                shard: self.roles.shard,
                primary_region: home.clone(),
                failover: FailoverMode::Auto,
                rpo: Rpo::default(),
                v8_format: V8Format::default(),
                queue_paused: false,
                webhooks: Vec::new(),
                quotas: Quotas::default(),
            };
            let id = DatabaseId(Uuid::new_v4().into_bytes());
            let change = Change::CreateDatabase { id, database, own_shard: true };
            cluster = self.cluster.operator().execute(&change, ACTOR).await?;
        }
        self.until_shards("the new shards are active", SHARDS_DEADLINE, |shard| {
            shard.phase == Phase::Active
        })
        .await?;
        self.mark(MarkKind::Phase, format!("{count} shards are active"));
        Ok(())
    }

    pub(super) async fn moved(&self) -> Result<(), StageError> {
        let home = format!("region-{}", self.roles.home + 1);
        let is_there = |shard: &Shard| shard.phase == Phase::Active && shard.primary_region != home;
        self.until_shards("every shard is active in another region", MOVE_DEADLINE, is_there).await
    }

    async fn until_shards(
        &self,
        what: &'static str,
        deadline: Duration,
        wanted: impl Fn(&Shard) -> bool,
    ) -> Result<(), StageError> {
        let done = poll::until(what, deadline, async || {
            let inspection = self
                .cluster
                .operator()
                .inspect(PATIENCE)
                .await
                .map_err(|error| error.to_string())?;
            let shards = &inspection.cluster.shards;
            match shards.values().filter(|shard| !wanted(shard)).count() {
                0 => Ok(()),
                left => Err(format!("{left} of {} are not", shards.len())),
            }
        });
        Ok(done.await?)
    }

    /// Orders a switchover, and waits until it is done.
    async fn switch(&mut self, target: Target) -> Result<(), StageError> {
        let region = match target {
            Target::Replica => self.roles.replica.ok_or(StageError::NoTarget)?,
            Target::Home => self.roles.home,
        };
        let (shard, to) = (self.roles.shard, format!("region-{}", region + 1));
        self.mark(MarkKind::Fault, format!("switch over to {to}"));
        let change = Change::BeginSwitchover { shard, to: to.clone() };
        let refused = match self.cluster.operator().execute(&change, ACTOR).await {
            Ok(_) => None,
            // An order whose answer was lost is refused when it is repeated: its outcome is looked
            // up.
            Err(OperatorError::Refused(reason)) => Some(reason),
            Err(error) => return Err(error.into()),
        };
        let done = poll::until("the switchover is done", SWITCH_DEADLINE, async || {
            let inspection = self
                .cluster
                .operator()
                .inspect(PATIENCE)
                .await
                .map_err(|error| error.to_string())?;
            let now = inspection.cluster.shards.get(&shard).ok_or("no such shard")?;
            match (now.phase == Phase::Active, now.primary_region == to, &refused) {
                (true, true, _) => Ok(Ok(())),
                (true, false, Some(reason)) => Ok(Err(OperatorError::Refused(reason.clone()))),
                _ => Err(format!("{:?}", now.phase)),
            }
        });
        done.await??;
        self.mark(MarkKind::Phase, format!("{to} is the primary"));
        Ok(())
    }
}

fn named(machines: &[Machine]) -> String {
    let names: BTreeSet<String> = machines.iter().map(ToString::to_string).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}
