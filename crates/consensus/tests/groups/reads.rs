use std::sync::{Arc, Mutex, mpsc};

use crate::seal::three;
use crate::support::{at, leader, until, write};
use crate::wire::Wire;

/// The others apply what they are told is committed, and show it; the leader may come to that later.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_reads_nothing_older_than_what_it_has_let_others_apply() {
    let wire = Arc::new(Wire::default());
    let nodes = three(&wire).await;
    let last = write(&nodes, 1, "before").await;
    let leading = leader(&nodes).await;
    assert!(leading.group().has_applied_what_it_told().await);
    let (goes_on, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    // Nothing is ever sent: it waits until the other end is dropped.
    leading.state.observe(move |_| assert!(tokio::task::block_in_place(|| wait.lock().unwrap().recv()).is_err()));

    let shown = async {
        let follower = nodes.iter().find(|node| node.id != leading.id).unwrap();
        let next = at(1, last + 1);
        until("a follower shows it", async || follower.state.position() == next).await;
        let reading = leading.group().has_applied_what_it_told();
        tokio::pin!(reading);
        assert!(futures::poll!(&mut reading).is_pending(), "the leader would show what is older");
        drop(goes_on);
        reading.await
    };
    let (written, applied) = tokio::join!(leading.write("slow"), shown);
    assert_eq!((written, applied), (Ok(last + 1), true));
}
