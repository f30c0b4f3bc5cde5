//! `set-quotas` of databases and of tokens.

use std::num::NonZeroU64;

use anyhow::{Result, bail};
use clap::Args;
use meridian_directory::{Change, Cluster, QuotaOwner};
use meridian_types::{Quota, Quotas};

use super::operator::{Directory, format, print, print_json};

/// Quotas that databases and tokens have. Each holds at each gateway.
#[derive(Args)]
pub(crate) struct SetQuotas {
    /// Operations begun in a second. What comes too fast waits up to a second, and is refused
    /// beyond.
    #[arg(long, value_name = "NUMBER")]
    requests_per_second: Option<NonZeroU64>,
    /// Bytes of requests and answers in a second, such as 10MiB.
    #[arg(long, value_name = "BYTES", value_parser = format::parse_size)]
    bytes_per_second: Option<NonZeroU64>,
    /// Open connections.
    #[arg(long, value_name = "NUMBER")]
    connections: Option<NonZeroU64>,
    /// Open watches and change feeds.
    #[arg(long, value_name = "NUMBER")]
    watches: Option<NonZeroU64>,
    /// Listeners and waiting polls of queues.
    #[arg(long, value_name = "NUMBER")]
    listeners: Option<NonZeroU64>,
    /// Quotas to be removed, by their names, with commas: what has no quota is not bounded by one.
    #[arg(long, value_name = "QUOTAS", value_delimiter = ',')]
    remove: Vec<Quota>,
}

/// Quotas that only databases have. They hold in the whole cluster.
#[derive(Args)]
pub(crate) struct SetStoredQuotas {
    /// Bytes of keys and values, such as 10GiB, as they were measured last. Beyond, only deletes
    /// are taken. A small database is measured every few seconds. A large one is read at 16 MiB a
    /// second, and again after an hour at most, or ten minutes while the quota is used up: until it
    /// was read, deletes make no room.
    #[arg(long, value_name = "BYTES", value_parser = format::parse_size)]
    stored_bytes: Option<NonZeroU64>,
    /// Keys that have a value, measured in the same way.
    #[arg(long, value_name = "NUMBER")]
    keys: Option<NonZeroU64>,
}

impl SetQuotas {
    /// `stored`: of a database.
    pub(crate) async fn run(
        self,
        directory: &mut Directory,
        of: QuotaOwner,
        stored: Option<SetStoredQuotas>,
        json: bool,
    ) -> Result<()> {
        let change = self.change(of, stored)?;
        let cluster = directory.execute(&change).await?;
        let Some(quotas) = quotas_of(&cluster, of) else { bail!("it is gone meanwhile") };
        if json { print_json(&quotas) } else { print(&format!("quotas: {}\n", text(&quotas))) }
    }

    fn change(self, of: QuotaOwner, stored: Option<SetStoredQuotas>) -> Result<Change> {
        let stored = stored.map(|stored| [stored.stored_bytes, stored.keys]).unwrap_or_default();
        let [stored_bytes, keys] = stored;
        let set = [
            (Quota::RequestsPerSecond, self.requests_per_second),
            (Quota::BytesPerSecond, self.bytes_per_second),
            (Quota::Connections, self.connections),
            (Quota::Watches, self.watches),
            (Quota::Listeners, self.listeners),
            (Quota::StoredBytes, stored_bytes),
            (Quota::Keys, keys),
        ];
        let named = set.into_iter().filter_map(|(quota, value)| Some((quota, value?)));
        let (set, remove) = (Quotas::from_iter(named), self.remove.into_iter().collect());
        let change = Change::SetQuotas { of, set, remove };
        match &change {
            Change::SetQuotas { set, remove, .. } if set.is_empty() && remove.is_empty() => {
                bail!("nothing to set: name a quota, or --remove one; see --help")
            }
            _ => Ok(change),
        }
    }
}

fn quotas_of(cluster: &Cluster, of: QuotaOwner) -> Option<Quotas> {
    match of {
        QuotaOwner::Database(id) => cluster.databases.get(&id).map(|database| database.quotas),
        QuotaOwner::Token(id) => cluster.tokens.get(&id).map(|token| token.quotas),
    }
}

/// `requests-per-second 100, stored-bytes 10.0 GiB`.
pub(crate) fn text(quotas: &Quotas) -> String {
    let one = |(quota, value): (Quota, NonZeroU64)| match quota {
        Quota::BytesPerSecond | Quota::StoredBytes => {
            format!("{quota} {}", format::size(value.get()))
        }
        _ => format!("{quota} {value}"),
    };
    let all: Vec<_> = quotas.iter().map(one).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        quotas: SetQuotas,
        #[command(flatten)]
        stored: SetStoredQuotas,
    }

    fn change(arguments: &[&str]) -> Result<Change> {
        let line = Line::try_parse_from(["meridian"].iter().chain(arguments))?;
        line.quotas.change(QuotaOwner::Token(1), Some(line.stored))
    }

    #[test]
    fn quotas_are_read_from_arguments_and_shown() {
        let made = change(&["--stored-bytes=10GiB", "--watches=5", "--remove=keys,connections"]);
        let Change::SetQuotas { set, remove, .. } = made.unwrap() else { panic!() };
        assert_eq!(text(&set), "watches 5, stored-bytes 10.0 GiB");
        assert_eq!(Vec::from_iter(remove), [Quota::Connections, Quota::Keys]);
        assert_eq!(text(&Quotas::default()), "none");
        for wrong in ["--watches=0", "--remove=moons", "--stored-bytes=1.5GB"] {
            assert!(change(&[wrong]).is_err(), "{wrong}");
        }
        assert!(change(&[]).unwrap_err().to_string().starts_with("nothing to set"));
    }
}
