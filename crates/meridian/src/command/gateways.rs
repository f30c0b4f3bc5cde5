//! `meridian gateways`: gateways without data that may have certificates.

use anyhow::Result;
use clap::{Args, Subcommand};
use meridian_directory::{Change, Member};
use serde::Serialize;

use super::invitation::{Lifetime, invite, revoke, show_token};
use super::operator::{Connect, Directory, Table, print, print_json};

#[derive(Args)]
pub(crate) struct Gateways {
    #[command(flatten)]
    connect: Connect,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the gateways that may have certificates.
    List,
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
}

impl Gateways {
    pub(crate) async fn run(self) -> Result<()> {
        let mut directory = Directory::new(&self.connect.target)?;
        let json = self.connect.json;
        match self.command {
            Command::List => {
                let cluster = directory.inspect(0).await?.cluster;
                let names = cluster.trust.present_gateways().map(String::as_str);
                let gateways: Vec<_> = names.map(|name| Gateway { name }).collect();
                if json {
                    return print_json(&gateways);
                }
                let mut table = Table::new(&["GATEWAY"]);
                gateways.iter().for_each(|gateway| table.row([gateway.name.to_owned()]));
                print(&table.to_string())
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
