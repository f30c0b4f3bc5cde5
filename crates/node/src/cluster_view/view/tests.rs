//! The cluster as a process knows it: what is news, what is foreign, and what a lease allows.

use futures::FutureExt;
use meridian_config::{DEV_DEFAULT_DATABASE, DEV_SECOND_DATABASE, DevLayout};
use meridian_directory::Token;
use meridian_types::{KeyPrefix, Permission, Permissions};

use super::*;

fn cluster(version: u64, id: Option<&str>) -> Cluster {
    let founded = DevLayout::new(&[3]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    Cluster { version, id: id.map(str::to_owned), ..founded }
}

fn directory(known: Cluster, founder: Option<(NodeId, String)>) -> Directory {
    Directory::new(known, Access::default(), founder)
}

#[test]
fn what_another_cluster_says_is_not_taken_over_however_new_it_is() {
    let directory = directory(cluster(3, Some("a")), None);
    directory.learn(cluster(9, Some("b"))).unwrap_err();
    directory.learn(cluster(9, None)).unwrap_err();
    assert_eq!(directory.known().cluster.version, 3);
    directory.learn(cluster(4, Some("a"))).unwrap();
    assert_eq!(directory.known().cluster.version, 4);
    // A node of the same cluster that has not heard of its name yet is behind, and not foreign.
    directory.learn(cluster(1, None)).unwrap();
    assert_eq!(directory.known().cluster.version, 4);
}

#[test]
fn a_foreign_cluster_is_named_in_the_error() {
    let said_to = |own, other| {
        directory(cluster(3, own), None).learn(cluster(9, other)).unwrap_err().to_string()
    };
    let said = "this process is of cluster a, what was said is of cluster";
    assert_eq!(said_to(Some("a"), Some("b")), format!("{said} b"));
    assert_eq!(said_to(Some("a"), None), format!("{said} (not named yet)"));
}

#[test]
fn a_cluster_that_is_known_already_is_no_news() {
    let directory = directory(cluster(3, Some("a")), None);
    let mut known = directory.watch();
    let (before, same) = (directory.known(), cluster(3, Some("a")));
    directory.learn(Cluster { default_database: None, ..same }).unwrap();
    directory.learn(cluster(2, Some("a"))).unwrap();
    assert!(Arc::ptr_eq(&directory.known(), &before));
    assert!(!known.has_changed().unwrap());
    directory.learn(cluster(4, Some("a"))).unwrap();
    assert_eq!(known.borrow_and_update().cluster.version, 4);
}

#[test]
fn clients_are_told_of_databases_what_the_cluster_has() {
    let mut cluster = cluster(3, Some("a"));
    let rpo = Rpo { max_ms: 77, ..Rpo::default() };
    cluster.databases.get_mut(&DEV_SECOND_DATABASE).unwrap().rpo = rpo;
    let directory = directory(cluster, None);
    assert_eq!(directory.default_database(), Some(DEV_DEFAULT_DATABASE));
    assert_eq!(directory.by_name("default"), Some(DEV_DEFAULT_DATABASE));
    assert_eq!(directory.by_name("second"), Some(DEV_SECOND_DATABASE));
    assert_eq!(directory.by_name("third"), None);
    assert_eq!(Catalogue::shard(&directory, DEV_SECOND_DATABASE), Some(ShardId(2)));
    assert_eq!(Catalogue::shard(&directory, DIRECTORY_DATABASE), None);
    assert_eq!(directory.rpo(DEV_SECOND_DATABASE), rpo);
    assert_ne!(directory.rpo(DEV_DEFAULT_DATABASE), rpo);
}

#[test]
fn a_token_opens_whether_the_configuration_or_the_cluster_has_it() {
    // SHA-256 of `abc`, as FIPS 180-2 has it.
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let mut cluster = cluster(3, Some("a"));
    let databases = TokenScope::Databases([DEV_SECOND_DATABASE].into());
    let token = |sha256: &str, expires_at_ms| Token {
        expires_at_ms,
        ..Token::new("ci".to_owned(), sha256.to_owned(), databases.clone(), Permissions::ALL)
    };
    cluster.tokens.insert(1, token(abc, None));
    let configured = TokenSecret::digest(abc).unwrap().sha256();
    let reader = Grant::new(Databases::All, Permissions::READ_ONLY);
    let configured = Access::from_expiring([(configured, reader.clone().into())]);
    let both = Directory::new(cluster.clone(), configured, None);
    assert_eq!(both.authorize("abc"), Some(reader), "the configuration goes before");
    assert_eq!(both.authorize("abcd"), None);
    let by_cluster = Directory::new(cluster.clone(), Access::default(), None);
    let grant = by_cluster.authorize("abc").unwrap();
    assert!(
        grant.allows(DEV_SECOND_DATABASE)
            && !grant.allows(DEV_DEFAULT_DATABASE)
            && grant.may(Permission::Write)
    );
    cluster.tokens.insert(1, token(abc, Some(1)));
    assert_eq!(
        Directory::new(cluster, Access::default(), None).authorize("abc"),
        None,
        "it has expired"
    );
}

#[test]
fn secret_that_was_replaced_opens_the_same_until_its_overlap_or_its_token_ends() {
    // SHA-256 of `abc` and of the empty text.
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let opens = |until_ms, expires_at_ms| {
        let (all, sha256) = (TokenScope::All, empty.to_owned());
        let mut token = Token::new("ci".to_owned(), sha256, all, Permissions::READ_ONLY);
        token.prefixes.insert(KeyPrefix::new(&b"\x02a\x00"[..]).unwrap());
        token.previous = Some(PreviousSecret { sha256: abc.to_owned(), until_ms });
        token.expires_at_ms = expires_at_ms;
        let mut cluster = cluster(3, Some("a"));
        cluster.tokens.insert(1, token);
        let directory = Directory::new(cluster, Access::default(), None);
        [directory.authorize("abc"), directory.authorize("")]
    };
    let [previous, present] = opens(u64::MAX, None);
    assert!(previous.is_some() && previous == present);
    assert!(!present.unwrap().opens_key(b"\x02ab\x00"));
    assert!(matches!(opens(1, None), [None, Some(_)]), "the overlap has ended");
    assert!(matches!(opens(u64::MAX, Some(1)), [None, None]), "the token has ended");
}

#[test]
fn use_of_a_token_is_noted_and_a_revoked_one_is_told_from_an_unknown_one() {
    // SHA-256 of `abc`.
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let mut known = cluster(3, Some("a"));
    let (label, all) = ("ci".to_owned(), TokenScope::All);
    known.tokens.insert(1, Token::new(label, abc.to_owned(), all, Permissions::ALL));
    let directory = Directory::new(known.clone(), Access::default(), None);
    assert_eq!(directory.authorize("abd"), None);
    assert_eq!(directory.token_uses().untold(), []);
    assert!(directory.authorize("abc").is_some());
    let [told] = directory.token_uses().untold()[..] else { panic!("one use") };
    assert!(told.token_id == 1 && told.time_ms > 0);
    let mut next = Cluster { version: 4, ..known };
    directory.learn(next.clone()).unwrap();
    assert_eq!(directory.token_uses().untold(), [told], "over changes of the cluster");
    next.tokens.clear();
    directory.learn(Cluster { version: 5, ..next }).unwrap();
    assert_eq!(directory.authorize("abc"), None);
    assert_eq!(
        (directory.denial("abc"), directory.denial("abd")),
        (Denial::Revoked, Denial::Unknown)
    );
    assert_eq!(directory.token_uses().untold(), [], "of tokens that there are");
}

#[test]
fn voters_of_the_own_region_are_asked_first() {
    let mut cluster =
        DevLayout::new(&[3, 2, 2]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    cluster.directory_voters = [1, 4, 5, 6].map(NodeId).into();
    let directory = directory(cluster, None);
    assert_eq!(directory.voters_near("region-1"), [1, 4, 5, 6].map(NodeId));
    assert_eq!(directory.voters_near("region-2"), [4, 5, 1, 6].map(NodeId));
    assert_eq!(directory.voters_near("region-3"), [6, 1, 4, 5].map(NodeId));
}

#[test]
fn node_votes_in_the_directory_while_the_cluster_names_it_or_named_it_before() {
    let mut cluster = cluster(3, Some("a"));
    cluster.directory_voters = [NodeId(1)].into();
    cluster.former_directory_voters = [NodeId(2)].into();
    let directory = directory(cluster, None);
    let voters = |group| [1, 2, 3].map(|node| directory.may_vote_in(group, NodeId(node)));
    assert_eq!(voters(DIRECTORY_GROUP), [true, true, false]);
    let of_epoch = |epoch| GroupId { shard: ShardId(1), epoch: Epoch(epoch) };
    assert_eq!(voters(of_epoch(1)), [true; 3]);
    assert_eq!(voters(of_epoch(2)), [false; 3]);
}

#[test]
fn what_leaders_say_of_how_far_shards_came_is_kept_by_epoch() {
    let directory = directory(cluster(3, Some("a")), None);
    let (shard, epoch) = (ShardId(1), Epoch(2));
    assert_eq!(directory.progress_hint(shard, epoch), CommitProgress::NONE);
    let progress = CommitProgress::new(40, 7);
    directory.observe_hints([ProgressHint { shard, epoch, progress }]);
    let progress = CommitProgress::new(30, 8);
    directory.observe_hints([ProgressHint { shard, epoch, progress }]);
    assert_eq!(directory.progress_hint(shard, epoch), CommitProgress::new(40, 8));
    assert_eq!(directory.progress_hint(shard, Epoch(3)), CommitProgress::NONE);
    assert_eq!(directory.progress_hint(ShardId(2), epoch), CommitProgress::NONE);
}

#[test]
fn a_renewal_that_was_asked_for_is_not_missed() {
    let directory = directory(cluster(3, Some("a")), None);
    assert_eq!(directory.renewal_is_wanted().now_or_never(), None);
    directory.renew_now();
    assert_eq!(directory.renewal_is_wanted().now_or_never(), Some(()));
    assert_eq!(directory.renewal_is_wanted().now_or_never(), None, "once is enough");
}

#[test]
fn absence_is_not_reported_before_the_cluster_is_known() {
    for remembered in [0, 3] {
        let directory = directory(cluster(remembered, None), None);
        assert!(!directory.is_current(), "it may have changed while this process was away");
        directory.note_up_to_date();
        assert_eq!(directory.is_current(), remembered > 0, "a configuration is no cluster");
        directory.learn(cluster(4, Some("a"))).unwrap();
        assert!(directory.is_current());
    }
    let directory = directory(cluster(3, Some("a")), None);
    directory.renewed(directory.now(), &Lease { ttl: Duration::from_secs(1), shards: Vec::new() });
    assert!(directory.is_current());
}

#[test]
fn a_founder_takes_over_no_cluster_that_does_not_have_it() {
    let founder = |id, name: &str| directory(cluster(0, None), Some((NodeId(id), name.to_owned())));
    founder(1, "region-1-a").learn(cluster(9, Some("b"))).unwrap();
    founder(1, "another-name").learn(cluster(9, Some("b"))).unwrap_err();
    founder(7, "region-1-a").learn(cluster(9, Some("b"))).unwrap_err();
    // An operator tells a node that joins where to go.
    directory(cluster(0, None), None).learn(cluster(9, Some("b"))).unwrap();
}

#[test]
fn a_lease_that_is_left_of_an_epoch_that_is_over_is_not_held() {
    let mut cluster =
        DevLayout::new(&[3, 2, 2]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    let directory = Directory::new(cluster.clone(), Access::default(), None);
    let (shard, epoch) = (ShardId(1), Epoch(1));
    assert!(!directory.holds_lease(shard, epoch));
    let hour = Duration::from_secs(3600);
    directory.renewed(directory.now(), &Lease { ttl: hour, shards: vec![(shard, epoch)] });
    assert!(directory.holds_lease(shard, epoch));
    let (of, remaining) = directory.lease_remaining(shard).unwrap();
    assert!(
        of == epoch && remaining <= hour && remaining > hour / 2,
        "{remaining:?} of epoch {of}"
    );
    directory.renewed(directory.now(), &Lease { ttl: hour, shards: vec![(shard, epoch)] });
    assert!(!directory.holds_lease(shard, Epoch(2)));
    cluster.version += 1;
    cluster.shards.get_mut(&shard).unwrap().epoch = Epoch(2);
    directory.learn(cluster).unwrap();
    assert!(!directory.holds_lease(shard, epoch));
}

#[test]
fn nothing_is_left_of_a_lease_on_an_epoch_that_is_sealed() {
    let directory = directory(cluster(3, Some("a")), None);
    let (shard, other, epoch) = (ShardId(1), ShardId(2), Epoch(1));
    let lease =
        Lease { ttl: Duration::from_secs(3600), shards: vec![(shard, epoch), (other, epoch)] };
    directory.renewed(directory.now(), &lease);
    directory.seal(shard, epoch);
    // Asked for before it was sealed, and granted after.
    directory.renewed(directory.now(), &lease);
    assert!(!directory.holds_lease(shard, epoch) && directory.lease_remaining(shard).is_none());
    assert!(directory.holds_lease(other, epoch));
}
