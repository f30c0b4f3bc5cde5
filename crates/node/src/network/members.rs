//! The addresses of the cluster's nodes, for which a listener keeps room.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::time::timeout;

/// The time for one look-up. The addresses of a name that is not answered by then are kept.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK_UP_AGAIN: Duration = Duration::from_secs(60);

/// Finds the addresses that `names` gives for what is `known` of the cluster, again and again: names
/// may come to mean others. The addresses of a name that is not answered stay as they were.
/// Ends when all receivers of `members`, or the sender of `known`, are gone.
pub(crate) async fn look_up<K>(
    mut known: watch::Receiver<K>,
    names: impl Fn(&K) -> HashSet<String>,
    members: watch::Sender<HashSet<IpAddr>>,
) {
    let mut found = HashMap::<String, Vec<IpAddr>>::new();
    loop {
        let names = names(&known.borrow_and_update());
        found.retain(|name, _| names.contains(name));
        for name in &names {
            if let Ok(Ok(addresses)) = timeout(LOOK_UP_TIMEOUT, lookup_host(name)).await {
                found.insert(
                    name.clone(),
                    addresses.map(|address| address.ip().to_canonical()).collect(),
                );
            }
        }
        members.send_replace(found.values().flatten().copied().collect());
        tokio::select! {
            changed = known.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_UP_AGAIN) => {}
            () = members.closed() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use meridian_config::DevLayout;
    use meridian_gateway::Access;
    use meridian_types::NodeId;

    use super::*;
    use crate::cluster_view::view::{Directory, Known};

    #[tokio::test]
    async fn the_nodes_of_a_cluster_are_known_by_address_and_by_name() {
        let address = |node| {
            if node == NodeId(1) { "localhost:1".to_owned() } else { format!("10.0.0.{node}:4601") }
        };
        let founded = DevLayout::new(&[3]).found(address, |_| None).unwrap();
        let directory = Directory::new(founded.clone(), Access::default(), None);
        let members = watch::Sender::default();
        let mut found = members.subscribe();
        tokio::spawn(look_up(directory.watch(), Known::rpc_addresses, members));
        let at = |last| IpAddr::from([10, 0, 0, last]);
        found
            .wait_for(|found| found.contains(&at(2)) && found.iter().any(IpAddr::is_loopback))
            .await
            .unwrap();
        let mut cluster = directory.known().cluster.clone();
        cluster.nodes.get_mut(&NodeId(1)).unwrap().rpc_address = "10.0.0.8:4601".to_owned();
        cluster.version += 1;
        directory.learn(cluster).unwrap();
        found.wait_for(|found| *found == HashSet::from([at(2), at(3), at(8)])).await.unwrap();
    }
}
