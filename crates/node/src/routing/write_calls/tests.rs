use std::sync::Arc;

use futures::future::join_all;
use futures::stream::BoxStream;
use meridian_config::DevLayout;
use meridian_proto::shard::Turn;
use meridian_proto::shard::shard_server::{Shard, ShardServer};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use super::*;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn a_moment_is_never_later_on_the_other_clock() {
    let sample = |shown: u64, received: u64| Sample {
        clock: wire::ProcessTime { process: 9, millis: shown },
        received: ms(received),
    };
    // The node's clock showed 5,000 when it answered, at 100 here; it was here at 190.
    let translated = sample(5_000, 190).translate(ms(1_190), ms(200)).unwrap();
    assert_eq!(translated.process, 9);
    assert!(
        translated.millis <= 5_000 + 1_190 - 100 && translated.millis >= 5_900,
        "{translated:?}"
    );
    // A moment that is over is over there, too.
    assert!(sample(5_000, 1_000).translate(ms(400), ms(1_000)).unwrap().millis < 4_500);
    assert_eq!(sample(0, 1_000).translate(ms(400), ms(1_000)).unwrap().millis, 0);
    // Nor by a part of a millisecond, which neither clock says.
    for (at_us, received_us) in [(1_190_000, 190_900), (1_190_900, 190_000), (1_190_100, 190_900)] {
        let (at, received) = (Duration::from_micros(at_us), Duration::from_micros(received_us));
        let translated = Sample { received, ..sample(5_000, 0) }.translate(at, received).unwrap();
        assert!(ms(translated.millis) <= ms(5_000) + (at - received), "{translated:?} of {at:?}");
    }
    // A sample of long ago says nothing.
    let later = ms(190) + CLOCK_KNOWN_FOR + ms(1);
    assert!(sample(5_000, 190).translate(later + ms(1), later).is_none());
}

#[test]
fn only_a_moment_of_this_process_is_understood() {
    let now = clock();
    assert_eq!(valid_until(Some(now)), Some(ms(now.millis)));
    assert_eq!(valid_until(Some(wire::ProcessTime { process: now.process ^ 1, ..now })), None);
    assert_eq!(valid_until(None), None);
    // Nor is one of an earlier process, of which this knows nothing: no two have the same number.
    assert!(now.process > u64::from(u32::MAX), "{now:?}");
}

/// Takes turns as they come, in that order, and returns the order in which they were let by.
async fn passed(numbers: &[u64]) -> Vec<u64> {
    let (turns, passed) = (Arc::new(Turns::default()), Arc::new(Mutex::new(Vec::new())));
    let tasks = numbers.iter().map(|number| {
        let (turns, passed, turn) = (
            Arc::clone(&turns),
            Arc::clone(&passed),
            Turn { sender: 1, number: *number, bytes_ahead: 0 },
        );
        async move {
            let place = turns.wait(turn).await;
            passed.lock().push(turn.number);
            drop(place);
        }
    });
    join_all(tasks).await;
    Arc::into_inner(passed).unwrap().into_inner()
}

#[tokio::test]
async fn overtaking_write_waits_for_those_before_and_for_none_that_never_comes() {
    assert_eq!(passed(&[3, 2, 5, 1, 4]).await, [1, 2, 3, 4, 5]);
    // 2 was given up on its way: those behind it go on, at about the same time.
    let mut after_a_gap = passed(&[1, 4, 3]).await;
    after_a_gap.sort_unstable();
    assert_eq!(after_a_gap, [1, 3, 4]);
}

#[tokio::test]
async fn small_write_that_overtook_a_large_one_on_the_way_waits_for_it() {
    let (turns, passed) = (Turns::default(), Mutex::new(Vec::new()));
    let let_by = async |number, bytes_ahead, travels: Duration| {
        tokio::time::sleep(travels).await;
        let place = turns.wait(Turn { sender: 1, number, bytes_ahead }).await;
        passed.lock().push(number);
        drop(place);
    };
    // Larger than any wait: whatever runs how fast here, the first is the first to wake up.
    tokio::join!(let_by(2, u64::MAX, Duration::ZERO), let_by(1, 0, ms(50)));
    assert_eq!(*passed.lock(), [1, 2]);
}

#[tokio::test]
async fn a_turn_says_which_it_is_and_what_is_under_way_before_it() {
    let cluster = DevLayout::new(&[3]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    let calls = WriteCalls::new(Arc::new(PeerChannels::new(&cluster, Arc::new(|_| None)).unwrap()));
    let next = |bytes| calls.next_turn(NodeId(1), ShardId(1), bytes);
    let (first, second) = (next(800_000), next(50));
    assert_eq!((first.turn.bytes_ahead, second.turn.bytes_ahead), (0, 800_000));
    assert_eq!(
        (first.turn.number, second.turn.number, second.turn.sender),
        (1, 2, first.turn.sender)
    );
    drop(first);
    assert_eq!(
        (next(1).turn.bytes_ahead, calls.next_turn(NodeId(2), ShardId(1), 1).turn.bytes_ahead),
        (50, 0)
    );
}

/// A node that only asks until when a write is valid, as often as it is to, and then says that it
/// does not lead.
struct Asks {
    times: usize,
    valid_until: Arc<Mutex<Vec<Option<wire::ProcessTime>>>>,
}

#[tonic::async_trait]
impl Shard for Asks {
    type ReadStream = BoxStream<'static, Result<wire::ReadPart, Status>>;
    type WatchStream = BoxStream<'static, Result<wire::WatchNews, Status>>;

    async fn watch(
        &self,
        _: Request<wire::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("only writes"))
    }

    async fn write(
        &self,
        request: Request<wire::WriteRequest>,
    ) -> Result<Response<wire::WriteResponse>, Status> {
        let mut heard = self.valid_until.lock();
        heard.push(request.into_inner().valid_until);
        let result = match heard.len() <= self.times {
            true => write_response::Result::ClockUnknown(wire::ClockUnknown {}),
            false => write_response::Result::NotLeader(wire::NotLeader { leader: 2 }),
        };
        let clock = Some(wire::ProcessTime { process: 7, millis: 5_000_000 });
        Ok(Response::new(wire::WriteResponse { result: Some(result), clock, ..Default::default() }))
    }

    async fn read(
        &self,
        _: Request<wire::ReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        Err(Status::unimplemented("only writes"))
    }

    async fn read_position(
        &self,
        _: Request<wire::ReadPositionRequest>,
    ) -> Result<Response<wire::ReadPositionResponse>, Status> {
        Err(Status::unimplemented("only writes"))
    }
}

#[test]
fn call_of_a_write_that_has_not_left_did_nothing_whatever_it_failed_of() {
    let broken = || Status::unknown("the connection broke");
    let (here, left) = (Departure::default(), Departure::default());
    assert!(left.leave());
    assert!(matches!(failed(broken(), &here), Failed::Unreachable(_)));
    assert!(!here.leave(), "nor will it");
    assert!(matches!(failed(broken(), &left), Failed::Unknown(_)));
    assert!(matches!(failed(Status::not_found("no shard"), &left), Failed::NotDone(_)));
}

#[tokio::test]
async fn a_node_whose_clock_is_not_known_says_what_it_shows_and_is_asked_once_more_in_its_own_time()
{
    for times in [1, 2] {
        let asks = Asks { times, valid_until: Arc::default() };
        let heard = Arc::clone(&asks.valid_until);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tonic::transport::Server::builder().add_service(ShardServer::new(asks));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        let cluster =
            DevLayout::new(&[3]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
        let calls = WriteCalls::new(Arc::new(
            PeerChannels::new(&cluster, Arc::new(move |_| Some(address.clone()))).unwrap(),
        ));
        let write = async || {
            let in_a_minute = boot_time() + Duration::from_secs(60);
            let answer = calls
                .call(NodeId(1), wire::WriteRequest::default(), in_a_minute, &Arc::default())
                .await;
            answer.map(|answer| answer.result.unwrap())
        };
        let answer = write().await;
        assert_eq!(heard.lock().len(), 2);
        assert_eq!(heard.lock()[0], None);
        let until = heard.lock()[1].unwrap();
        assert!(until.process == 7 && (5_030_000..=5_060_000).contains(&until.millis), "{until:?}");
        if times == 1 {
            assert!(matches!(answer, Ok(write_response::Result::NotLeader(_))), "{answer:?}");
            // Then it is known.
            write().await.unwrap();
            assert!(heard.lock().len() == 3 && heard.lock()[2].is_some());
        } else {
            assert!(
                matches!(&answer, Err(Failed::NotDone(why)) if why.contains("does not say")),
                "{answer:?}"
            );
        }
    }
}
