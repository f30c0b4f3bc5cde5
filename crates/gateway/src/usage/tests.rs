//! Paces by a clock that stands still, and what is open.

use super::*;

const MAIN: Account = Account::Database(DatabaseId([1; 16]));
const OTHER: Account = Account::Database(DatabaseId([2; 16]));
const TOKEN: Account = Account::Token(7);

fn quotas(of: &[(Quota, u64)]) -> Quotas {
    of.iter().map(|(quota, value)| (*quota, (*value).try_into().unwrap())).collect()
}

fn metered(usage: &Usage, of_database: &[(Quota, u64)], of_token: &[(Quota, u64)]) -> Metered {
    Metered::new(usage, [(MAIN, quotas(of_database)), (TOKEN, quotas(of_token))])
}

fn used(usage: &Usage, account: Account) -> Used {
    let used = usage.used();
    used.into_iter().find(|(of, _)| *of == account).expect("it was used").1
}

/// How many of `count` requests at one time begin at once, wait, and are refused.
fn turns(metered: &Metered, count: usize, bytes: u64, now: Instant) -> [usize; 3] {
    let mut seen = [0; 3];
    for _ in 0..count {
        match metered.request(now) {
            Turn::At(at) if at <= now => seen[0] += 1,
            Turn::At(at) => {
                assert!(at <= now + MAX_WAIT);
                seen[1] += 1;
            }
            Turn::Refused(_) => seen[2] += 1,
        }
        metered.received(bytes, now);
    }
    seen
}

#[test]
fn burst_begins_at_once_the_next_wait_their_turn_and_the_rest_is_refused_without_a_charge() {
    let (usage, now) = (Usage::default(), Instant::now() + Duration::from_secs(9));
    let metered = metered(&usage, &[(Quota::RequestsPerSecond, 10)], &[]);
    // One more request begins at each bound: it uses the bound up.
    assert_eq!(turns(&metered, 100, 0, now), [11, 10, 79]);
    let refused = metered.request(now);
    let Turn::Refused(Exceeded { quota, value, of, room_in }) = refused else { panic!() };
    assert_eq!((quota, value, of), (Quota::RequestsPerSecond, 10, MAIN));
    let room_in = room_in.unwrap();
    assert!(room_in > MAX_WAIT && room_in < 2 * MAX_WAIT, "{room_in:?}");
    // A second pays for ten.
    assert_eq!(turns(&metered, 100, 0, now + Duration::from_secs(1)), [0, 10, 90]);
    // Refused requests are not paid for: all is as at the beginning.
    assert_eq!(turns(&metered, 100, 0, now + Duration::from_secs(60)), [11, 10, 79]);
    let Used { requests, slowed, refused, .. } = used(&usage, MAIN);
    assert_eq!((requests, slowed, refused), (52, 30, 249));
}

#[test]
fn bytes_of_answers_hold_up_the_next_request_as_those_of_requests_do() {
    let (usage, now) = (Usage::default(), Instant::now() + Duration::from_secs(9));
    let metered = metered(&usage, &[], &[(Quota::BytesPerSecond, 1000)]);
    assert_eq!(turns(&metered, 1, 500, now), [1, 0, 0]);
    metered.answered(900, now);
    let Turn::At(turn) = metered.request(now) else { panic!("it waits") };
    let waits = turn - now;
    assert!(waits > Duration::from_millis(399) && waits < Duration::from_millis(401), "{waits:?}");
    metered.received(5000, now);
    let Turn::Refused(Exceeded { quota, of, .. }) = metered.request(now) else { panic!() };
    assert_eq!((quota, of), (Quota::BytesPerSecond, TOKEN));
    // On average it is a thousand in a second.
    assert_eq!(turns(&metered, 1, 0, now + Duration::from_millis(4410)), [0, 1, 0]);
    assert_eq!(turns(&metered, 1, 0, now + Duration::from_millis(5410)), [1, 0, 0]);
    let Used { bytes_in, bytes_out, .. } = used(&usage, MAIN);
    assert_eq!((bytes_in, bytes_out), (5500, 900), "they are counted without a quota, too");
}

#[test]
fn no_quota_holds_up_nothing_and_what_it_was_used_before_is_not_paid_for() {
    let (usage, now) = (Usage::default(), Instant::now() + Duration::from_secs(9));
    assert_eq!(turns(&metered(&usage, &[], &[]), 10_000, 1 << 20, now), [10_000, 0, 0]);
    let bounded = metered(&usage, &[(Quota::RequestsPerSecond, 5)], &[(Quota::BytesPerSecond, 5)]);
    assert_eq!(turns(&bounded, 1, 0, now), [1, 0, 0]);
    // A request of the other database with the same token.
    let other = Metered::new(&usage, [(OTHER, Quotas::default()), (TOKEN, Quotas::default())]);
    assert_eq!(turns(&other, 100, 0, now), [100, 0, 0]);
}

#[test]
fn changed_quota_holds_for_a_stream_that_was_open_before_and_no_debt_lasts() {
    let (usage, now) = (Usage::default(), Instant::now() + Duration::from_secs(9));
    let stream = metered(&usage, &[(Quota::BytesPerSecond, 10)], &[]);
    stream.answered(1 << 40, now);
    assert_eq!(stream.stream_turn(), Some(now + MAX_DEBT - STREAM_AHEAD));
    assert_eq!(turns(&stream, 1, 0, now + MAX_DEBT - MAX_WAIT / 2), [0, 1, 0]);
    let later = now + MAX_DEBT;
    let raised = metered(&usage, &[(Quota::BytesPerSecond, 1 << 30)], &[]);
    assert_eq!(turns(&raised, 1, 0, later), [1, 0, 0]);
    // By the raised one.
    stream.answered(1 << 20, later);
    assert_eq!(turns(&raised, 1, 0, later), [0, 1, 0]);
    assert!(stream.stream_turn().unwrap() < later);
    let removed = metered(&usage, &[], &[]);
    assert_eq!(turns(&removed, 1, 0, later), [1, 0, 0]);
    stream.answered(1 << 40, later);
    assert_eq!((stream.stream_turn(), turns(&removed, 9, 0, later)), (None, [9, 0, 0]));
    // Bytes from before the quota are not paid for.
    assert_eq!(
        turns(&metered(&usage, &[(Quota::BytesPerSecond, 10)], &[]), 1, 0, later),
        [1, 0, 0]
    );
}

#[test]
fn what_is_open_counts_until_it_is_dropped_and_a_refusal_counts_nothing() {
    let usage = Usage::default();
    let metered = metered(&usage, &[(Quota::Watches, 2)], &[(Quota::Listeners, 1)]);
    let open = [(); 2].map(|()| metered.open(Opened::Watch).unwrap());
    let exceeded = metered.open(Opened::Watch).unwrap_err();
    assert_eq!((exceeded.quota, exceeded.value, exceeded.of), (Quota::Watches, 2, MAIN));
    let listener = metered.open(Opened::Listener).unwrap();
    assert_eq!(metered.open(Opened::Listener).unwrap_err().of, TOKEN);
    for account in [MAIN, TOKEN] {
        let Used { watches, listeners, refused, .. } = used(&usage, account);
        assert_eq!((watches, listeners, refused), (2, 1, 1));
    }
    drop((open, listener));
    assert!(metered.open(Opened::Watch).is_ok() && metered.open(Opened::Listener).is_ok());
    for account in [MAIN, TOKEN] {
        let Used { watches, listeners, .. } = used(&usage, account);
        assert_eq!((watches, listeners), (0, 0));
    }
}

#[test]
fn connection_counts_for_the_database_of_its_latest_request() {
    let usage = Usage::default();
    let one = [(Quota::Connections, 1)];
    let main = metered(&usage, &[], &one);
    let other = Metered::new(&usage, [(OTHER, Quotas::default()), (TOKEN, quotas(&one))]);
    let (first, second) = (MeteredConnection::default(), MeteredConnection::default());
    first.carries(&main).unwrap();
    first.carries(&main).unwrap();
    // The token has no other connection.
    first.carries(&other).unwrap();
    assert_eq!((used(&usage, MAIN).connections, used(&usage, OTHER).connections), (0, 1));
    assert_eq!(second.carries(&main).unwrap_err().quota, Quota::Connections);
    assert_eq!(used(&usage, TOKEN).connections, 1);
    drop(first);
    second.carries(&main).unwrap();
}

#[test]
fn accounts_that_are_not_used_are_forgotten_and_those_with_something_open_are_not() {
    let (usage, now) = (Usage::default(), Instant::now());
    let open = metered(&usage, &[], &[]).open(Opened::Watch).unwrap();
    let later = now + 2 * FORGET_AFTER;
    for id in 0..10 * KEPT as u64 {
        drop(usage.new_meter(Account::Token(1000 + id), later));
    }
    // Those of before, but for two, and those that came at the later time.
    let known = usage.used().len();
    assert_eq!(known, 10 * KEPT + 2);
    let much_later = later + 2 * FORGET_AFTER;
    for id in 0..10 * KEPT as u64 {
        drop(usage.new_meter(Account::Token(1_000_000 + id), much_later));
    }
    assert!(usage.used().len() < 2 * known, "{}", usage.used().len());
    assert_eq!(used(&usage, MAIN).watches, 1);
    drop(open);
}
