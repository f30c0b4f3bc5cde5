//! Dead letters that operators redrive and discard, and the numbers that this leaves free.

use super::*;

/// Letters of these numbers, in a queue whose numbers go up to `next_dead`, exclusively.
pub(super) fn buried(numbers: impl IntoIterator<Item = u64>, next_dead: u64) -> State {
    let letters: BTreeMap<_, _> = numbers.into_iter().map(|number| (number, letter(2))).collect();
    let first_dead = letters.keys().next().copied().unwrap_or(next_dead);
    let removed_dead = next_dead - first_dead - letters.len() as u64;
    let none = QueueTotals::default();
    let totals = QueueTotals { undelivered: 5, first_dead, next_dead, removed_dead, ..none };
    State { totals, letters, ..state(dying()) }
}

pub(super) fn redrive(number: u64) -> Settlement {
    settlement(0, Verdict::Redriven { number })
}

fn discard(number: u64) -> Settlement {
    settlement(0, Verdict::Discarded { number })
}

fn gone(number: u64) -> QueueEffect {
    QueueEffect::DeleteDeadLetter { number }
}

fn with_removed(removed_dead: u64, totals: QueueEffect) -> QueueEffect {
    let QueueEffect::PutTotals(totals) = totals else { panic!("{totals:?}") };
    QueueEffect::PutTotals(QueueTotals { removed_dead, ..totals })
}

#[test]
fn redriven_letter_is_a_message_again_as_if_no_delivery_had_failed() {
    let message = Message {
        payload: message().payload,
        keys_if_undelivered: vec![],
        backoff_ms: limits::DEFAULT_BACKOFF_MS.to_vec(),
        attempts: 0,
        enqueued_ms: 77,
    };
    // Never in a row that it had: it may have died in the very millisecond.
    let put = put(NOW_MS + 1, message.clone());
    let first = settled(&buried(3..6, 6), vec![redrive(3)]);
    assert_eq!(first, commit(vec![put.clone(), gone(3), totals(6, 4, 6)]));
    let between = settled(&buried(3..6, 6), vec![redrive(4)]);
    assert_eq!(between, commit(vec![put, gone(4), with_removed(1, totals(6, 3, 6))]));
    let mut old = buried(3..4, 4);
    old.letters.insert(3, DeadLetter { died_ms: 4, ..letter(2) });
    let put = self::put(NOW_MS, message);
    assert_eq!(settled(&old, vec![redrive(3)]), commit(vec![put, gone(3), totals(6, 4, 4)]));
}

#[test]
fn letter_that_is_not_there_or_has_another_id_is_left_and_its_transaction_commits() {
    let state = buried([3, 5], 6);
    for number in [0, 2, 4, 6, u64::MAX] {
        for verdict in [Verdict::Redriven { number }, Verdict::Discarded { number }] {
            assert_eq!(settled(&state, vec![settlement(0, verdict)]), commit(vec![]), "{number}");
        }
    }
    let other = MessageId { index: 4, ..ID };
    for verdict in [Verdict::Redriven { number: 3 }, Verdict::Discarded { number: 3 }] {
        let stranger = Settlement { id: other, ..settlement(0, verdict) };
        assert_eq!(settled(&state, vec![stranger]), commit(vec![]));
    }
}

#[test]
fn letter_is_taken_out_once_however_often_a_transaction_says_so() {
    let state = buried([3, 4], 5);
    let twice = settled(&state, vec![discard(3), redrive(3), discard(3)]);
    assert_eq!(twice, commit(vec![gone(3), totals(5, 4, 5)]));
    let all = settled(&state, vec![discard(4), discard(3)]);
    assert_eq!(all, commit(vec![gone(3), gone(4), totals(5, 5, 5)]));
    // A letter of the same transaction has the number, and the id, that it has from then on.
    let own = settled(&state, vec![settlement(DUE_MS, FAILED), discard(5)]);
    assert_eq!(own, commit(vec![delete(DUE_MS), gone(5), with_removed(1, totals(4, 3, 6))]));
}

#[test]
fn numbers_without_letters_are_passed_over_when_the_first_letter_goes() {
    let state = buried([3, 7, 9], 11);
    let result = settled(&state, vec![discard(3)]);
    assert_eq!(result, commit(vec![gone(3), with_removed(2, totals(5, 7, 11))]));
    let result = settled(&state, vec![discard(3), discard(7), discard(9)]);
    assert_eq!(result, commit(vec![gone(3), gone(7), gone(9), totals(5, 11, 11)]));
    // Those beyond the bound go by letters, not by numbers.
    let mut full = buried([3].into_iter().chain(10..1009), 1009);
    let buries = vec![settlement(DUE_MS, FAILED)];
    let put = |number| QueueEffect::PutDeadLetter { number, letter: letter(2) };
    let expected = vec![delete(DUE_MS), gone(3), put(1009), totals(4, 10, 1010)];
    assert_eq!(settled(&full, buries.clone()), commit(expected));
    full.letters.remove(&500);
    full.totals.removed_dead += 1;
    let expected = vec![delete(DUE_MS), put(1009), with_removed(7, totals(4, 3, 1010))];
    assert_eq!(settled(&full, buries), commit(expected));
}

/// Else a letter that is never taken out would keep ever more numbers behind it.
#[test]
fn numbers_that_are_kept_are_bounded_however_few_letters_have_them() {
    let most = limits::MAX_DEAD_NUMBERS;
    let buries = || vec![settlement(DUE_MS, FAILED)];
    let put = |number| QueueEffect::PutDeadLetter { number, letter: letter(2) };
    let within = settled(&buried([1], most), buries());
    let kept = with_removed(most - 2, totals(4, 1, most + 1));
    assert_eq!(within, commit(vec![delete(DUE_MS), put(most), kept]));
    let beyond = settled(&buried([1], most + 1), buries());
    let end = most + 1;
    let expected = vec![delete(DUE_MS), gone(1), put(end), totals(4, end, end + 1)];
    assert_eq!(beyond, commit(expected));
}

#[test]
fn redriving_is_bounded_by_the_queue_and_by_bytes() {
    let mut state = buried([3], 4);
    state.totals.undelivered = limits::MAX_UNDELIVERED_MESSAGES;
    let result = settled(&state, vec![redrive(3)]);
    assert!(
        matches!(&result, Evaluation::Rejected(text) if text.contains("backlog")),
        "{result:?}"
    );
    assert!(matches!(settled(&state, vec![discard(3)]), Evaluation::Commit(_)));
    let large = DeadLetter { payload: vec![7; limits::MAX_VALUE_BYTES].into(), ..letter(2) };
    let mut state = buried(0..65, 65);
    state.letters.values_mut().for_each(|letter| *letter = large.clone());
    assert!(matches!(settled(&state, (0..64).map(redrive).collect()), Evaluation::Commit(_)));
    let result = settled(&state, (0..65).map(redrive).collect());
    assert!(matches!(&result, Evaluation::Rejected(text) if text.contains("bytes")), "{result:?}");
    assert!(matches!(settled(&state, (0..65).map(discard).collect()), Evaluation::Commit(_)));
}
