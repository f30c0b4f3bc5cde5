//! Named queues: rows and totals of their own, within bounds that are the database's.

use super::letters::{buried, redrive};
use super::*;

fn name(name: &str) -> QueueName {
    name.parse().unwrap()
}

fn enqueue(queues: &[&str]) -> Transaction {
    let enqueue = |queue: &&str| Enqueue { queue: name(queue), ..Enqueue::default() };
    Transaction { enqueues: queues.iter().map(enqueue).collect(), ..Transaction::default() }
}

/// With one message in a named queue, due at [`DUE_MS`], and those of [`state`].
fn named(queue: &str, message: Message) -> State {
    let mut state = state(self::message());
    state.named.insert((name(queue), DUE_MS, ID), message);
    state.undelivered.insert(name(queue), 1);
    (state.totals.named_undelivered, state.totals.names) = (1, 1);
    state
}

fn settlement_in(queue: &str, verdict: Verdict) -> Settlement {
    Settlement { queue: name(queue), ..settlement(DUE_MS, verdict) }
}

fn effects(evaluation: Evaluation) -> Vec<QueueEffect> {
    let Evaluation::Commit(effects) = evaluation else { panic!("{evaluation:?}") };
    let effect = |effect| match effect {
        Effect::Queue(effect) => effect,
        other => panic!("{other:?}"),
    };
    effects.into_iter().map(effect).collect()
}

/// The totals of the named queues that were written, and those of the database.
fn totals_of(effects: &[QueueEffect]) -> (Vec<(String, u64)>, QueueTotals) {
    let named = effects.iter().filter_map(|effect| match effect {
        QueueEffect::PutNamedTotals { queue, undelivered } => {
            Some((queue.to_string(), *undelivered))
        }
        _ => None,
    });
    let [.., QueueEffect::PutTotals(totals)] = effects else { panic!("{effects:?}") };
    (named.collect(), *totals)
}

#[test]
fn enqueues_into_named_queues_are_counted_there_and_in_the_database() {
    let state = named("a", message());
    let effects = effects(evaluated(&state, &enqueue(&["b", "", "a", "b"])));
    let queues: Vec<&str> = (effects.iter())
        .filter_map(|effect| match effect {
            QueueEffect::PutMessage { queue, .. } => Some(queue.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(queues, ["b", "", "a", "b"]);
    let (named, totals) = totals_of(&effects);
    assert_eq!(named, [("a".to_owned(), 2), ("b".to_owned(), 2)]);
    assert_eq!((totals.undelivered, totals.named_undelivered, totals.names), (6, 4, 2));
}

#[test]
fn message_is_settled_in_its_queue_and_in_no_other() {
    let state = named("a", message());
    for verdict in [Verdict::Delivered, Verdict::Cancelled, FAILED] {
        for other in ["b", "A", "aa"] {
            let elsewhere = settled(&state, vec![settlement_in(other, verdict)]);
            assert_eq!(elsewhere, commit(vec![]), "{other}");
        }
    }
    let elsewhere = settled(&state, vec![settlement_in("b", Verdict::Acknowledged)]);
    assert_eq!(elsewhere, Evaluation::CheckFailed(vec![0]));
    let own = effects(settled(&state, vec![settlement_in("a", Verdict::Acknowledged)]));
    let deleted = QueueEffect::DeleteMessage { queue: name("a"), id: ID, due_ms: DUE_MS };
    assert_eq!(own[0], deleted);
    let (named, totals) = totals_of(&own);
    assert_eq!(named, [("a".to_owned(), 0)], "its row goes");
    assert_eq!(totals, self::state(message()).totals, "as before the first name");
}

#[test]
fn failed_message_stays_in_its_queue_and_a_dead_one_comes_back_to_it() {
    let again = effects(settled(&named("a", message()), vec![settlement_in("a", FAILED)]));
    let [_, QueueEffect::PutMessage { queue, due_ms, .. }] = &again[..] else {
        panic!("{again:?}")
    };
    assert_eq!((queue.as_str(), *due_ms), ("a", NOW_MS + 100));

    let dead = effects(settled(&named("a", dying()), vec![settlement_in("a", FAILED)]));
    let letter = DeadLetter { queue: name("a"), ..letter(2) };
    assert_eq!(dead[1], QueueEffect::PutDeadLetter { number: 4, letter: letter.clone() });
    assert_eq!(totals_of(&dead).0, [("a".to_owned(), 0)]);

    let mut buried = buried(3..4, 4);
    buried.letters.insert(3, letter);
    let redriven = effects(settled(&buried, vec![redrive(3)]));
    let QueueEffect::PutMessage { queue, .. } = &redriven[0] else { panic!("{redriven:?}") };
    let (named, totals) = totals_of(&redriven);
    assert_eq!((queue.as_str(), named), ("a", vec![("a".to_owned(), 1)]));
    assert_eq!((totals.undelivered, totals.named_undelivered, totals.names), (5, 1, 1));
}

/// Else names would multiply what a database may have.
#[test]
fn all_queues_of_a_database_have_one_bound_of_undelivered_messages() {
    let full = Evaluation::Rejected(
        "Queue backlog limit exceeded: a database may have 2000000 undelivered messages."
            .to_owned(),
    );
    for (undelivered, named_undelivered) in [(1, 1_999_998), (1_999_998, 1)] {
        let mut state = named("a", message());
        state.undelivered.insert(name("a"), named_undelivered);
        state.totals = QueueTotals { undelivered, named_undelivered, ..state.totals };
        for queue in ["", "a", "b"] {
            let one = evaluated(&state, &enqueue(&[queue]));
            assert!(matches!(one, Evaluation::Commit(_)), "{queue}: {one:?}");
            for other in ["", "a", "b"] {
                assert_eq!(evaluated(&state, &enqueue(&[queue, other])), full, "{queue} {other}");
            }
        }
    }
}

#[test]
fn named_queues_with_messages_are_bounded_and_others_take_the_place_of_empty_ones() {
    let mut state = named("a", message());
    state.totals.names = limits::MAX_QUEUE_NAMES as u64 - 1;
    assert!(matches!(evaluated(&state, &enqueue(&["b"])), Evaluation::Commit(_)));
    let text = "A database may have undelivered messages in 100 named queues.";
    let too_many = Evaluation::Rejected(text.to_owned());
    assert_eq!(evaluated(&state, &enqueue(&["b", "c"])), too_many);
    state.totals.names += 1;
    assert_eq!(evaluated(&state, &enqueue(&["b"])), too_many);
    for known in ["a", ""] {
        let more = evaluated(&state, &enqueue(&[known]));
        assert!(matches!(more, Evaluation::Commit(_)), "{known}: {more:?}");
    }
    let settlements = vec![settlement_in("a", Verdict::Delivered)];
    let instead = Transaction { settlements, ..enqueue(&["b"]) };
    let (named, totals) = totals_of(&effects(evaluated(&state, &instead)));
    assert_eq!(named, [("a".to_owned(), 0), ("b".to_owned(), 1)]);
    assert_eq!(totals.names, limits::MAX_QUEUE_NAMES as u64);
    // A letter finds no place either.
    let mut buried = buried(3..4, 4);
    buried.totals.names = limits::MAX_QUEUE_NAMES as u64;
    buried.letters.insert(3, DeadLetter { queue: name("b"), ..letter(2) });
    assert_eq!(settled(&buried, vec![redrive(3)]), too_many);
}
