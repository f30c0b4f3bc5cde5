//! When connections are idle, cut, and ended.

use super::*;

const FIRST: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(120);

#[test]
fn a_connection_without_a_request_is_idle_soon() {
    let now = Instant::now();
    let activity = Activity::new(now);
    assert_eq!(activity.idle_at(now, FIRST, IDLE), now + FIRST);
    assert_eq!(activity.idle_at(now + FIRST, FIRST, IDLE), now + FIRST);
}

#[test]
fn idleness_counts_from_the_last_request() {
    let now = Instant::now();
    let activity = Activity::new(now);
    activity.authorized();
    let last = now + Duration::from_secs(5);
    activity.touch(last);
    assert_eq!(activity.idle_at(last + FIRST, FIRST, IDLE), last + IDLE);
}

#[test]
fn answer_that_was_not_taken_is_as_much_as_a_request_in_progress() {
    let activity = Arc::new(Activity::new(Instant::now()));
    let begin = || activity.begin(Instant::now());
    let answer = activity.sending(Bytes::from_static(b"no"), IDLE, stream());
    let first = begin().unwrap();
    assert_eq!(activity.requests(), 2);
    drop((answer, first));
    assert_eq!(activity.requests(), 0);
    // Nothing begins on a connection that ends for having too many, with a token or without.
    activity.end_overrun();
    activity.authorized();
    assert_eq!(begin().err(), Some(NotBegun::Overrun));
}

fn stream() -> Option<StreamRoom> {
    Some(StreamRoom::default())
}

#[test]
fn client_that_takes_no_frames_of_streams_ends_soon_once_it_closes() {
    let activity = Arc::new(Activity::new(Instant::now()));
    activity.authorized();
    let busy = Busy::new(&activity).streams();
    let frame = activity.untaken(5, IDLE);
    let now = Instant::now();
    activity.closes(now);
    let later = now + Duration::from_secs(5);
    assert!(activity.cut_at(later, CLOSE_GRACE) <= later);
    // A whole answer may be that of a write.
    let answer = activity.sending(Bytes::from_static(b"done"), IDLE, stream());
    assert!(activity.cut_at(later, CLOSE_GRACE) > later && !activity.ends_soon());
    drop((answer, frame));
    assert!(activity.ends_soon());
    drop(busy);
}

#[test]
fn stranger_with_an_answer_that_it_does_not_take_is_idle_soon_and_cut_soon() {
    let now = Instant::now();
    let activity = Arc::new(Activity::new(now));
    let _answer = activity.sending(Bytes::from_static(b"no"), IDLE, stream());
    let last = now + Duration::from_secs(5);
    activity.touch(last);
    assert_eq!(activity.idle_at(last, FIRST, IDLE), last + FIRST);
    activity.closes(last);
    assert_eq!(activity.cut_at(last, CLOSE_GRACE), last + CLOSE_GRACE);
    activity.authorized();
    assert!(activity.idle_at(last, FIRST, IDLE) >= now + IDLE);
}

#[test]
fn connection_is_at_work_unless_all_its_answers_stream() {
    let activity = Arc::new(Activity::new(Instant::now()));
    assert!(!activity.is_at_work());
    let (stream, request) = (Busy::new(&activity).streams(), Busy::new(&activity));
    assert!(activity.is_at_work());
    drop(request);
    assert!(!activity.is_at_work() && activity.has_requests());
    drop(stream);
    assert!(!activity.has_requests());
    let _next = Busy::new(&activity);
    assert!(activity.is_at_work());
}

#[test]
fn a_connection_with_a_request_in_progress_is_not_idle() {
    let now = Instant::now();
    let activity = Arc::new(Activity::new(now));
    activity.authorized();
    let busy = Busy::new(&activity);
    let later = now + Duration::from_secs(3600);
    assert_eq!(activity.idle_at(later, FIRST, IDLE), later + IDLE);
    drop(busy);
    assert!(activity.idle_at(later, FIRST, IDLE) < later);
}

#[test]
fn a_connection_without_a_valid_token_is_idle_soon_after_each_request() {
    let now = Instant::now();
    let activity = Activity::new(now);
    let last = now + Duration::from_secs(5);
    activity.touch(last);
    assert_eq!(activity.idle_at(last, FIRST, IDLE), last + FIRST);
}

#[test]
fn a_connection_that_closes_is_cut_when_nothing_is_lost_by_it() {
    let opened = Instant::now();
    let activity = Arc::new(Activity::new(opened));
    let grace = Duration::from_millis(50);
    let at = |millis| opened + Duration::from_millis(millis);
    activity.closes(at(1000));
    assert_eq!(activity.cut_at(at(1000), grace), at(1050));
    // A request that was on its way is finished, and its answer gets through, if it carried a
    // valid token.
    let busy = activity.begin(at(1040)).unwrap();
    activity.authorized();
    assert!(activity.cut_at(at(5000), grace) > at(5000));
    activity.busy.fetch_sub(1, Ordering::Relaxed);
    std::mem::forget(busy);
    activity.touch(at(5000));
    assert_eq!(activity.cut_at(at(5000), grace), at(5000) + CLOSE_GRACE);
    // A request that comes so late does not keep the connection open.
    assert!(activity.begin(at(1000) + CLOSE_GRACE).is_ok());
    let late = activity.begin(at(1001) + CLOSE_GRACE);
    assert_eq!(late.err(), Some(NotBegun::Closing));
}

#[test]
fn closing_connection_is_cut_although_requests_without_a_token_keep_coming() {
    let opened = Instant::now();
    let activity = Arc::new(Activity::new(opened));
    activity.closes(opened + Duration::from_secs(1));
    activity.touch(opened + Duration::from_millis(1049));
    let cut_at = activity.cut_at(opened + Duration::from_millis(1049), Duration::from_millis(50));
    assert_eq!(cut_at, opened + Duration::from_millis(1050));
}

#[tokio::test]
async fn closing_connection_is_cut_although_its_client_has_not_taken_an_answer() {
    let activity = Arc::new(Activity::new(Instant::now() - Duration::from_secs(1)));
    activity.authorized();
    let now = Instant::now();
    let _answer = activity.sending(Bytes::from(vec![7; 1 << 20]), Duration::ZERO, None);
    let _others = Busy::new(&activity);
    activity.closes(now);
    // A client has four seconds to take a megabyte.
    for taking in [Duration::ZERO, Duration::from_millis(2500)].map(|time| now + time) {
        assert!(activity.cut_at(taking, CLOSE_GRACE) > taking);
    }
    let later = now + Duration::from_secs(60);
    assert!(activity.cut_at(later, CLOSE_GRACE) <= later);
}

#[tokio::test]
async fn untaken_large_answer_ends_its_connection_whatever_else_is_in_progress() {
    let now = Instant::now();
    let activity = Arc::new(Activity::new(now));
    activity.authorized();
    let small = activity.sending(Bytes::from(vec![7; LARGE_ANSWER_BYTES - 1]), IDLE, None);
    assert!(!activity.is_busy());
    drop(small);
    let answer = activity.sending(Bytes::from(vec![7; 1 << 20]), IDLE, None);
    assert!(activity.is_busy());
    let _others = Busy::new(&activity);
    let later = now + Duration::from_secs(3600);
    let cut = activity.idle_at(later, FIRST, IDLE);
    let patience = IDLE + Duration::from_secs(4);
    assert!(cut >= now + patience && cut <= Instant::now() + patience);
    // A part of the answer counts as much as the whole.
    let rest = answer.slice(5..);
    drop(answer);
    assert_eq!(activity.idle_at(later, FIRST, IDLE), cut);
    drop(rest);
    assert_eq!(activity.idle_at(later, FIRST, IDLE), later + IDLE);
}

#[tokio::test]
async fn each_large_answer_is_watched_until_it_is_taken() {
    let activity = Arc::new(Activity::new(Instant::now()));
    let large = || activity.sending(Bytes::from(vec![7; LARGE_ANSWER_BYTES]), IDLE, None);
    let (first, second, third) = (large(), large(), large());
    assert_eq!(activity.unsent().until.len(), 3);
    drop(second);
    assert!(activity.is_busy());
    drop(first);
    assert!(activity.is_busy());
    drop(third);
    assert!(!activity.is_busy());
}
