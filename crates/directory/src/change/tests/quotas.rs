//! Quotas are set and removed one by one, and those that mean nothing are refused.

use super::*;

pub(super) fn quotas(of: &[(Quota, u64)]) -> Quotas {
    of.iter().map(|(quota, value)| (*quota, (*value).try_into().unwrap())).collect()
}

pub(super) fn set(of: QuotaOwner, set: &[(Quota, u64)], remove: &[Quota]) -> Change {
    Change::SetQuotas { of, set: quotas(set), remove: remove.iter().copied().collect() }
}

#[test]
fn quotas_that_are_not_named_stay() {
    let of = QuotaOwner::Database(DATABASE);
    let next = done(&cluster(), &set(of, &[(Quota::Keys, 5), (Quota::Watches, 1)], &[]));
    let next = done(&next, &set(of, &[(Quota::Keys, 6)], &[Quota::Watches, Quota::Listeners]));
    assert_eq!(next.databases[&DATABASE].quotas, quotas(&[(Quota::Keys, 6)]));
    let again = set(of, &[(Quota::Keys, 6)], &[]);
    assert_eq!(refused(&next, &again), "that is how it is already");
    assert_eq!(done(&next, &set(of, &[], &[Quota::Keys])).databases, cluster().databases);
}

#[test]
fn token_has_no_quota_of_what_is_stored() {
    let token = Token::new("ci".into(), "ab".repeat(32), TokenScope::All, Permissions::ALL);
    let stored = Token { quotas: quotas(&[(Quota::Keys, 5)]), ..token.clone() };
    let message = "keys is a quota of databases, not of tokens";
    assert_eq!(refused(&cluster(), &Change::CreateToken { token: stored }), message);
    let next = done(&cluster(), &Change::CreateToken { token });
    let of = QuotaOwner::Token(1);
    assert_eq!(refused(&next, &set(of, &[(Quota::Keys, 5)], &[])), message);
    let next = done(&next, &set(of, &[(Quota::RequestsPerSecond, 5)], &[]));
    assert_eq!(next.tokens[&1].quotas, quotas(&[(Quota::RequestsPerSecond, 5)]));
}

#[test]
fn quotas_of_nothing_and_both_ways_at_once_are_refused() {
    let both = set(QuotaOwner::Database(DATABASE), &[(Quota::Keys, 5)], &[Quota::Keys]);
    assert_eq!(refused(&cluster(), &both), "keys cannot be both set and removed");
    let no_token = set(QuotaOwner::Token(9), &[], &[Quota::Keys]);
    assert_eq!(refused(&cluster(), &no_token), "there is no token 9");
    let nothing = set(QuotaOwner::Database(DatabaseId([9; 16])), &[], &[Quota::Keys]);
    assert!(refused(&cluster(), &nothing).starts_with("there is no database "));
}

#[test]
fn quotas_are_golden_and_names_of_later_versions_are_ignored() {
    let quotas = quotas(&[(Quota::Keys, 5), (Quota::RequestsPerSecond, 100)]);
    let text = serde_json::to_string(&quotas).unwrap();
    assert_eq!(text, r#"{"keys":5,"requests-per-second":100}"#);
    let later = text.replace('{', r#"{"moons":1,"watches":0,"#);
    assert_eq!(serde_json::from_str::<Quotas>(&later).unwrap(), quotas);
    let change = set(QuotaOwner::Token(1), &[], &[Quota::StoredBytes]);
    assert_eq!(
        serde_json::to_string(&change).unwrap(),
        r#"{"SetQuotas":{"of":{"Token":1},"set":{},"remove":["stored-bytes"]}}"#
    );
}
