//! The drills that come with the program.

use crate::script::Script;

/// A script with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drill {
    pub name: String,
    pub script: Script,
}

/// In the order of the list.
const SCRIPTS: [(&str, &str); 18] = [
    ("dc-loss", include_str!("../scripts/dc-loss.drill")),
    ("two-dc-loss", include_str!("../scripts/two-dc-loss.drill")),
    ("region-loss", include_str!("../scripts/region-loss.drill")),
    ("many-shards", include_str!("../scripts/many-shards.drill")),
    ("replica-loss", include_str!("../scripts/replica-loss.drill")),
    ("relay-loss", include_str!("../scripts/relay-loss.drill")),
    ("partition", include_str!("../scripts/partition.drill")),
    ("asymmetric-partition", include_str!("../scripts/asymmetric-partition.drill")),
    ("pause-primary", include_str!("../scripts/pause-primary.drill")),
    ("throttled-loss", include_str!("../scripts/throttled-loss.drill")),
    ("switchover", include_str!("../scripts/switchover.drill")),
    ("failback", include_str!("../scripts/failback.drill")),
    ("directory-loss", include_str!("../scripts/directory-loss.drill")),
    ("rolling-restart", include_str!("../scripts/rolling-restart.drill")),
    ("rotate-ca", include_str!("../scripts/rotate-ca.drill")),
    ("queue-failover", include_str!("../scripts/queue-failover.drill")),
    ("calm", include_str!("../scripts/calm.drill")),
    ("replication", include_str!("../scripts/replication.drill")),
];

/// The names of all drills.
pub fn names() -> impl Iterator<Item = &'static str> {
    SCRIPTS.iter().map(|(name, _)| *name)
}

impl Drill {
    /// `None`: there is no drill of this name.
    pub fn named(name: &str) -> Option<Self> {
        let (name, text) = SCRIPTS.iter().find(|(known, _)| *known == name)?;
        // A test reads each script.
        Some(Self { name: (*name).to_owned(), script: text.parse().ok()? })
    }

    pub fn all() -> Vec<Self> {
        names().filter_map(Self::named).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::{Action, Script};

    #[test]
    fn every_script_is_read() {
        for (name, text) in SCRIPTS {
            let script: Script = text.parse().unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(!script.about.is_empty(), "{name} does not say what it is about");
        }
        assert_eq!(Drill::all().len(), SCRIPTS.len());
        assert_eq!(Drill::named("no-such-drill"), None);
    }

    #[test]
    fn every_fault_is_healed() {
        for Drill { name, script } in Drill::all() {
            let breaks = |action: &Action| {
                matches!(
                    action,
                    Action::PowerOff(_)
                        | Action::Kill(_)
                        | Action::Stop(_)
                        | Action::Pause(_)
                        | Action::Cut { .. }
                        | Action::Throttle { .. }
                )
            };
            let broken = script.steps.iter().position(|step| breaks(&step.action));
            let healed = script.steps.iter().position(|step| step.action == Action::Heal);
            assert!(broken.is_none() || broken < healed, "{name}");
        }
    }
}
