//! Batches that are damaged on the way between members, and batches that a member cannot read.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use meridian_proto::raft::{self, raft_client::RaftClient};
use meridian_proto::{encode_batch, log};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic::Code;

use crate::support::{Node, SHARD, at, batch, equal, leader, set, until, write};
use crate::wire::Wire;

/// Bits that are still to be flipped, wherever a value with this text passes.
const VALUE: &[u8] = b"a value in which a bit flips";

/// Listens, and passes on to `target` what comes, with a bit flipped in `VALUE` as long as there
/// are `left` to flip.
async fn flipping(target: SocketAddr, left: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let left = Arc::clone(&left);
            tokio::spawn(async move {
                near.set_nodelay(true).unwrap();
                let Ok(far) = TcpStream::connect(target).await else { return };
                far.set_nodelay(true).unwrap();
                let ((mut from, mut back), (mut answers, mut to)) =
                    (near.into_split(), far.into_split());
                let forth = async move {
                    let mut buffer = vec![0; 64 << 10];
                    while let Ok(len @ 1..) = from.read(&mut buffer).await {
                        let passing = &mut buffer[..len];
                        if let Some(at) =
                            passing.windows(VALUE.len()).position(|bytes| bytes == VALUE)
                            && left
                                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                                    left.checked_sub(1)
                                })
                                .is_ok()
                        {
                            passing[at + 3] ^= 1;
                        }
                        if to.write_all(passing).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::join!(forth, async { drop(tokio::io::copy(&mut answers, &mut back).await) });
            });
        }
    });
    address
}

#[tokio::test]
async fn a_bit_that_flips_on_the_way_to_a_member_is_found_and_sent_again() {
    let (wire, left) = (Arc::new(Wire::default()), Arc::new(AtomicUsize::new(0)));
    let (mut nodes, voters) = (Vec::new(), set(1..=3));
    for id in 1..=3 {
        let mut node = Node::new(id, &wire).await;
        wire.listens(node.id, flipping(node.address, Arc::clone(&left)).await);
        node.form(1, &voters, at(1, 0));
        node.open(1, &voters).await;
        nodes.push(node);
    }
    let before = write(&nodes, 2, "before").await;
    equal(&nodes, at(1, before)).await;
    left.store(3, Ordering::SeqCst);
    // Whichever member leads, and in whatever term it commits.
    let last = write(&nodes, 1, std::str::from_utf8(VALUE).unwrap()).await;
    until("the bits were flipped", async || left.load(Ordering::SeqCst) == 0).await;
    let last = last.max(write(&nodes, 2, "after").await);
    equal(&nodes, at(1, last)).await;
    let rows = nodes[0].rows();
    assert!(
        rows.iter().any(|(_, value)| value.ends_with(VALUE)),
        "the stored value is the written one"
    );
    let digests: Vec<_> = nodes.iter().map(|node| node.state.applied().digest).collect();
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
}

/// As a leader sends it that has term, log and all right, and this batch.
async fn append(
    nodes: &[Node],
    to: &Node,
    bytes: Bytes,
) -> Result<raft::AppendResponse, tonic::Status> {
    let group = raft::Group { shard: SHARD.0, epoch: 1, target: to.id.0 };
    let leadership = leader(nodes).await.group().leadership().unwrap();
    let vote =
        log::Vote { term: leadership.term, node_id: leader(nodes).await.id.0, committed: true };
    let previous = to.state.applied().raft.log_id.unwrap();
    let log_id = log::LogId { term: leadership.term, index: previous.index + 1 };
    let entry =
        log::Entry { log_id: Some(log_id), payload: Some(log::entry::Payload::Batch(bytes)) };
    let request = raft::AppendRequest {
        group: Some(group),
        vote: Some(vote),
        previous: Some(previous),
        entries: vec![entry],
        leader_commit: Some(previous),
        members: Vec::new(),
    };
    let endpoint =
        tonic::transport::Endpoint::from_shared(format!("http://{}", to.address)).unwrap();
    let mut client = RaftClient::new(endpoint.connect_lazy());
    client.append(request).await.map(tonic::Response::into_inner)
}

fn with_checksum(wire: &log::Batch) -> Bytes {
    let mut bytes = wire.encode_to_vec();
    let checksum = crc32c::crc32c(&bytes).to_le_bytes();
    bytes.push(15 << 3 | 5);
    bytes.extend(checksum);
    bytes.into()
}

#[tokio::test]
async fn a_batch_that_is_damaged_or_cannot_be_read_is_in_no_log_and_the_member_goes_on() {
    let wire = Arc::new(Wire::default());
    let nodes = crate::seal::three(&wire).await;
    let last = write(&nodes, 2, "before").await;
    equal(&nodes, at(1, last)).await;
    let leading = leader(&nodes).await.id;
    let follower = nodes.iter().find(|node| node.id != leading).unwrap();
    let next = at(1, last + 1);
    let mut damaged = encode_batch(&batch(next, "damaged where nothing else looks")).to_vec();
    let text = damaged.windows(7).position(|bytes| bytes == b"damaged").unwrap();
    damaged[text] ^= 4;
    let newer = log::Batch { epoch: 1, sequence: next.sequence, format: 99, ..Default::default() };
    let of_another_epoch = encode_batch(&batch(at(2, next.sequence), "of another epoch"));
    let cases = [
        (Bytes::from(damaged), "the bytes were damaged"),
        (
            with_checksum(&newer),
            "it is of format 99, and this version reads none beyond 4: upgrade this node",
        ),
        (of_another_epoch, "batch field `epoch`"),
        (Bytes::from_static(b"no batch at all"), "the bytes were damaged"),
    ];
    for (bytes, why) in cases {
        let refusal = append(&nodes, follower, bytes).await.unwrap_err();
        assert_eq!(refusal.code(), Code::DataLoss);
        assert!(refusal.message().contains(why), "{refusal}");
        let told = follower.state.refusals().recent().unwrap();
        assert!(told.contains(why), "{told}");
        // Nothing of it is in the way of what the leader really sends.
        let last = write(&nodes, 1, "after").await;
        equal(&nodes, at(1, last)).await;
    }
}

/// Set for the process that is to die.
const CHILD: &str = "MERIDIAN_TEST_DAMAGED_LEADER";

/// The others would refuse it for as long as it leads, and nothing would be committed.
#[test]
fn a_leader_that_is_about_to_send_what_its_memory_has_changed_stops() {
    if std::env::var_os(CHILD).is_some() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        return runtime.block_on(async {
            let nodes = crate::seal::three(&Arc::new(Wire::default())).await;
            let last = write(&nodes, 2, "before").await;
            let leading = leader(&nodes).await.group();
            let term = leading.leadership().unwrap().term;
            let mut bytes =
                encode_batch(&batch(at(1, last + 1), "damaged where nothing else looks")).to_vec();
            let text = bytes.windows(7).position(|bytes| bytes == b"damaged").unwrap();
            bytes[text] ^= 4;
            let mut proposal = leading.propose(bytes.into(), last + 1, term).await.unwrap();
            let applied =
                tokio::time::timeout(std::time::Duration::from_secs(10), proposal.applied()).await;
            println!("it goes on: {applied:?}");
        });
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "damage::a_leader_that_is_about_to_send_what_its_memory_has_changed_stops",
            "--exact",
            "--nocapture",
        ])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let (out, error) =
        (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    let signal = std::os::unix::process::ExitStatusExt::signal(&child.status);
    assert_eq!(signal, Some(6), "it was not aborted: {:?}\n{out}\n{error}", child.status);
    assert!(error.contains("corruption in log entry"), "{error}");
}
