//! `meridian gateways`: gateways without data that may have certificates.

use std::collections::BTreeSet;

use anyhow::Result;
use clap::{Args, Subcommand};
use meridian_directory::{Change, Member, Trust};
use serde::Serialize;

use super::invitation::{Lifetime, invite, revoke, show_token};
use super::operator::{Connect, Directory, Table, format, print, print_json};

#[derive(Args)]
pub(crate) struct Gateways {
    #[command(flatten)]
    connect: Connect,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the gateways that may have certificates, and from before when these are refused.
    List {
        /// Include removed gateways.
        #[arg(long)]
        all: bool,
    },
    /// Adds a gateway and prints its join token: one line, for `join` in its file.
    Add {
        /// Letters, digits, `-`, `_` and `.`.
        name: String,
        #[command(flatten)]
        lifetime: Lifetime,
    },
    /// Prints another join token for a gateway.
    JoinToken {
        name: String,
        #[command(flatten)]
        lifetime: Lifetime,
    },
    /// Revokes the certificates that a gateway has: it is refused until it joins anew.
    Revoke { name: String },
    /// Removes a gateway: its certificates are refused.
    Remove { name: String },
}

#[derive(Serialize)]
struct Gateway<'a> {
    name: &'a str,
    removed: bool,
    /// Certificates from before are refused, in milliseconds since the Unix epoch.
    revoked_before_ms: Option<u64>,
}

/// `all`: also those that were removed.
fn listed(trust: &Trust, all: bool) -> Vec<Gateway<'_>> {
    let present: BTreeSet<_> = trust.present_gateways().collect();
    let gateways = trust.gateways.iter().map(|(name, before_ms)| {
        let removed = !present.contains(name);
        let revoked_before_ms = Some(*before_ms).filter(|before_ms| !removed && *before_ms > 0);
        Gateway { name, removed, revoked_before_ms }
    });
    gateways.filter(|gateway| all || !gateway.removed).collect()
}

fn table(gateways: &[Gateway<'_>]) -> Table {
    let mut table = Table::new(&["GATEWAY", "CERTIFICATES"]);
    for gateway in gateways {
        let certificates = match gateway.revoked_before_ms {
            _ if gateway.removed => "removed".to_owned(),
            Some(before_ms) => format!("refused from before {}", format::time(before_ms)),
            None => "-".to_owned(),
        };
        table.row([gateway.name.to_owned(), certificates]);
    }
    table
}

impl Gateways {
    pub(crate) async fn run(self) -> Result<()> {
        let mut directory = Directory::new(&self.connect.target)?;
        let json = self.connect.json;
        match self.command {
            Command::List { all } => {
                let cluster = directory.inspect(0).await?.cluster;
                let gateways = listed(&cluster.trust, all);
                if json { print_json(&gateways) } else { print(&table(&gateways).to_string()) }
            }
            Command::Add { name, lifetime } => {
                let cluster = directory.execute(&Change::AddGateway { name: name.clone() }).await?;
                let member = Member::Gateway(name);
                let token = invite(&mut directory, &cluster, member, &lifetime).await?;
                show_token(&token, json)
            }
            Command::JoinToken { name, lifetime } => {
                let cluster = directory.inspect_leader(0).await?.cluster;
                let member = Member::Gateway(name);
                let token = invite(&mut directory, &cluster, member, &lifetime).await?;
                show_token(&token, json)
            }
            Command::Revoke { name } => {
                revoke(&mut directory, Member::Gateway(name.clone())).await?;
                print(&format!("the certificates of gateway {name} are refused from now on\n"))
            }
            Command::Remove { name } => {
                directory.execute(&Change::RemoveGateway { name: name.clone() }).await?;
                print(&format!("gateway {name} was removed\n"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::operator::samples::cluster;

    #[test]
    fn list_says_which_gateways_were_revoked_when_and_which_were_removed() {
        let add = |name: &str| Change::AddGateway { name: name.to_owned() };
        let revoked = Member::Gateway("b".to_owned());
        let changes = [
            add("a"),
            add("b"),
            add("c"),
            Change::RevokeCertificates { member: revoked, before_ms: 2000 },
            Change::RemoveGateway { name: "c".to_owned() },
        ];
        let cluster =
            changes.iter().fold(cluster(), |cluster, change| cluster.after(change).unwrap());
        assert_eq!(
            table(&listed(&cluster.trust, true)).to_string(),
            "GATEWAY  CERTIFICATES\n\
             a        -\n\
             b        refused from before 1970-01-01T00:00:02.000Z\n\
             c        removed\n"
        );
        let present = listed(&cluster.trust, false);
        let names: Vec<_> = present.iter().map(|gateway| gateway.name).collect();
        assert_eq!(names, ["a", "b"]);
    }
}
