//! The limits and the answers to bad input of `docs/kv-connect.md`, row by row, by a gateway on a
//! socket over a shard that evaluates and stores.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod arithmetic;
mod at_limits;
mod busy;
mod heads;
mod messages;
mod server;

use std::collections::BTreeMap;

use meridian_conformance::document;
use server::Answered;

const DOCUMENT: &str = include_str!("../../../../docs/kv-connect.md");

/// Each row of the documentation is answered as it says, and each case that is tried has a row.
#[tokio::test]
async fn bad_input_is_answered_as_each_row_of_the_documentation_says() {
    let mut answers = heads::answers().await;
    answers.extend(messages::answers().await);
    answers.extend(arithmetic::answers().await);
    answers.extend(busy::answers().await);
    let rows = document::table(DOCUMENT, "## Answers to bad input");
    assert!(rows.len() > 50, "the table has only {} rows", rows.len());
    let mut rows: BTreeMap<_, _> = rows
        .into_iter()
        .map(|row| {
            let [case, status, text] = <[String; 3]>::try_from(row).expect("three columns");
            (case, (status, text, 0))
        })
        .collect();
    for Answered { case, status, text } in answers {
        let (expected_status, expected, tried) =
            rows.get_mut(case).unwrap_or_else(|| panic!("no row for `{case}`"));
        assert_eq!(status.to_string(), *expected_status, "{case}: {text}");
        match expected.split_once('…') {
            Some((start, end)) => {
                assert!(text.starts_with(start) && text.ends_with(end), "{case}: {text}");
            }
            None => assert_eq!(text, *expected, "{case}"),
        }
        *tried += 1;
    }
    let untried = rows.iter().filter(|(_, (.., tried))| *tried == 0).map(|(case, _)| case);
    assert_eq!(untried.collect::<Vec<_>>(), [""; 0], "no request shows these rows");
}
