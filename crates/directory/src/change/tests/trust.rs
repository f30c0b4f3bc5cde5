//! Transport, authorities, operators, gateways and invitations.

use meridian_types::Level;

use super::*;
use crate::trust::{Authority, AuthorityKey, Invitation, Member, Operator, Transport};

fn authority(name: &str) -> Change {
    let key = Some(AuthorityKey::new(format!("hush-{name}")));
    let authority = Authority { certificate_pem: name.to_owned(), key, issues: false };
    Change::AddAuthority { authority }
}

fn with_authority() -> Cluster {
    done(&cluster(), &authority("first"))
}

fn invitation(member: Member, hash: u8, expires_at_ms: u64) -> Change {
    let sha256 = format!("{hash:02x}").repeat(32);
    Change::Invite {
        invitation: Invitation { member, sha256, expires_at_ms, used_by: None },
        now_ms: 1000,
    }
}

#[test]
fn stored_trust_is_golden() {
    let invited = done(&with_authority(), &invitation(Member::Node(NodeId(1)), 1, 2000));
    let json = serde_json::to_string(&invited.trust).unwrap();
    let hash = "01".repeat(32);
    let golden = format!(
        r#"{{"transport":"off","authorities":[{{"certificate_pem":"first","key":"hush-first","issues":true}}],"invitations":{{"1":{{"member":{{"node":1}},"sha256":"{hash}","expires_at_ms":2000}}}},"last_invitation_id":1}}"#
    );
    assert_eq!(json, golden);
    let json = serde_json::to_string(&invited).unwrap();
    assert_eq!(serde_json::from_str::<Cluster>(&json).unwrap(), invited);
}

#[test]
fn transport_changes_step_by_step_either_way() {
    let set = |transport| Change::SetTransport { transport };
    let mut cluster = cluster();
    let ways = [Transport::Off, Transport::Allow, Transport::Prefer, Transport::Require];
    for there in [&ways[1..], &[Transport::Prefer, Transport::Allow, Transport::Off]].concat() {
        for far in ways {
            let steps = (far as i8 - cluster.trust.transport as i8).abs();
            assert_eq!(cluster.after(&set(far)).is_ok(), steps == 1, "{far}");
        }
        cluster = done(&cluster, &set(there));
        assert_eq!(cluster.trust.transport.dials_tls(), there >= Transport::Prefer);
    }
    let text = refused(&cluster, &set(Transport::Require));
    assert!(text.contains("is `off`") && text.contains("step by step"), "{text}");
}

#[test]
fn one_authority_issues_and_is_not_removed() {
    let first = with_authority();
    let both = done(&first, &authority("second"));
    let issuing = |cluster: &Cluster| {
        let names = cluster.trust.authorities.iter().filter(|one| one.issues);
        names.map(|one| one.certificate_pem.clone()).collect::<Vec<_>>()
    };
    assert_eq!((issuing(&first), issuing(&both)), (vec!["first".into()], vec!["first".into()]));
    assert!(refused(&both, &Change::RemoveAuthority { number: 0 }).contains("issues certificates"));
    assert!(both.after(&Change::IssueWith { number: 2 }).is_err());
    let turned = done(&both, &Change::IssueWith { number: 1 });
    assert_eq!(issuing(&turned), ["second"]);
    assert_eq!(turned.trust.issuing().unwrap().1.expose(), "hush-second");
    let invited = done(&turned, &invitation(Member::Node(NodeId(1)), 1, 2000));
    let rotated = done(&invited, &Change::RemoveAuthority { number: 0 });
    assert!(rotated.trust.invitations.is_empty(), "its tokens name the authority that is gone");
    assert_eq!((rotated.trust.authorities.len(), issuing(&rotated)), (1, vec!["second".into()]));
    let many = (0..3).fold(rotated, |cluster, _| done(&cluster, &authority("more")));
    assert!(refused(&many, &authority("fifth")).contains("4 authorities"));
    let keyless = Authority { certificate_pem: "x".to_owned(), key: None, issues: false };
    assert!(cluster().after(&Change::AddAuthority { authority: keyless }).is_err());
}

#[test]
fn keys_of_authorities_are_shown_to_voters_of_the_directory_alone() {
    let cluster = with_authority();
    let json = |cluster: &Cluster| serde_json::to_string(cluster).unwrap();
    assert!(json(&cluster).contains("hush-first"));
    for shown in [cluster.for_nodes(), cluster.for_gateways(), cluster.without_secrets(None)] {
        assert!(!json(&shown).contains("hush") && json(&shown).contains("first"));
    }
    for change in [authority("a").without_keys(), authority("a").without_secrets()] {
        assert!(!serde_json::to_string(&change).unwrap().contains("hush"));
    }
    assert!(!format!("{cluster:?} {:?}", authority("a")).contains("hush"));
}

#[test]
fn operator_is_known_by_a_name_and_the_hash_of_a_token() {
    let operator = |name: &str, hash: u8| Change::AddOperator {
        operator: Operator {
            name: name.to_owned(),
            sha256: format!("{hash:02x}").repeat(32),
            level: Level::Operate,
            expires_at_ms: None,
            created_at_ms: 1,
        },
    };
    let with = done(&cluster(), &operator("ana@example.com", 1));
    let known = refused(&with, &operator("ana@example.com", 2));
    assert!(known.contains("operators login-token ana@example.com"), "{known}");
    assert!(refused(&with, &operator("bo", 1)).contains("exists already: have another one"));
    assert!(with.after(&operator("b o", 2)).is_err());
    let shown = serde_json::to_string(&with.without_secrets(None)).unwrap();
    assert!(!shown.contains(&"01".repeat(32)) && shown.contains("ana@example.com"));
    assert!(serde_json::to_string(&with.for_gateways()).unwrap().contains(&"01".repeat(32)));
    let remove = |name: &str| Change::RemoveOperator { name: name.to_owned() };
    let without = done(&with, &remove("ana@example.com"));
    assert!(without.trust.operators.is_empty());
    assert!(without.after(&remove("bo")).is_err());
    assert_eq!(done(&without, &operator("bo", 2)).trust.operators.keys().next(), Some(&2));
    // Where operators come by tokens alone, an admin stays.
    let mut last = done(&with, &authority("first"));
    assert!(refused(&last, &remove("ana@example.com")).contains("last operator of level `admin`"));
    let known = last.trust.operators.get_mut(&1).unwrap().clone();
    last.trust
        .operators
        .insert(2, Operator { level: Level::Admin, name: "bo".to_owned(), ..known });
    done(&last, &remove("ana@example.com"));
}

#[test]
fn operator_gets_another_token_in_the_place_of_the_one_before() {
    let operator = |name: &str, hash: u8, level| Operator {
        name: name.to_owned(),
        sha256: format!("{hash:02x}").repeat(32),
        level,
        expires_at_ms: None,
        created_at_ms: 1,
    };
    let set = |name: &str, hash: u8, expires_at_ms| Change::SetOperatorToken {
        name: name.to_owned(),
        sha256: format!("{hash:02x}").repeat(32),
        expires_at_ms,
    };
    let mut before = with_authority();
    before.trust.operators = [
        (1, operator("ana", 1, Level::Admin)),
        (2, operator("bo", 2, Level::Operate)),
        (3, operator("cy", 3, Level::Admin)),
    ]
    .into();
    let next = done(&before, &set("ana", 7, Some(9)));
    let known = Operator { expires_at_ms: Some(9), ..operator("ana", 7, Level::Admin) };
    assert_eq!(next.trust.operators[&1], known);
    assert_eq!(next.trust.operators[&2], before.trust.operators[&2]);
    assert_eq!(done(&next, &set("ana", 8, None)).trust.operators[&1].expires_at_ms, None);
    // Its bounds are those of a first token.
    assert_eq!(refused(&next, &set("di", 8, None)), "there is no operator di");
    for taken in [2, 7] {
        assert!(refused(&next, &set("ana", taken, None)).contains("exists already"), "{taken}");
    }
    let short = Change::SetOperatorToken {
        name: "ana".to_owned(),
        sha256: "08".to_owned(),
        expires_at_ms: None,
    };
    assert!(refused(&next, &short).contains("64 hex digits"));
    let last = refused(&next, &set("cy", 8, Some(9)));
    assert!(last.starts_with("cy is the last operator of level `admin`"), "{last}");
    done(&next, &set("bo", 8, Some(9)));
    // It is stored in this form, and is in the record without its hash.
    let (hash, change) = ("07".repeat(32), set("ana", 7, Some(9)));
    assert_eq!(
        serde_json::to_string(&change).unwrap(),
        format!(r#"{{"SetOperatorToken":{{"name":"ana","sha256":"{hash}","expires_at_ms":9}}}}"#)
    );
    for shown in [change.without_keys(), change.without_secrets()] {
        let shown = serde_json::to_string(&shown).unwrap();
        assert!(!shown.contains(&hash) && shown.contains("ana"), "{shown}");
    }
    let written = serde_json::to_string(&set(&"n".repeat(100), 7, Some(u64::MAX))).unwrap();
    assert!(written.len() <= change.size());
}

#[test]
fn invitation_is_used_by_one_request_and_forgotten_once_it_has_expired() {
    let first = invitation(Member::Node(NodeId(1)), 1, 2000);
    assert!(refused(&cluster(), &first).contains("no authority"));
    let unknown = invitation(Member::Node(NodeId(99)), 1, 2000);
    assert!(refused(&with_authority(), &unknown).contains("no node 99"));
    let nameless = invitation(Member::Gateway("edge".to_owned()), 1, 2000);
    assert!(refused(&with_authority(), &nameless).contains("no gateway edge"));
    let invited = done(&with_authority(), &first);
    assert!(refused(&invited, &first).contains("exists already"));
    let using =
        |request: u8| Change::UseInvitation { id: 1, request: format!("{request:02x}").repeat(32) };
    let used = done(&invited, &using(7));
    assert_eq!(refused(&used, &using(7)), "that is how it is already");
    let again = refused(&used, &using(8));
    assert!(again.contains("used already") && again.contains("join-token"), "{again}");
    let later = Change::Invite {
        invitation: Invitation {
            member: Member::Node(NodeId(2)),
            sha256: "02".repeat(32),
            expires_at_ms: 9000,
            used_by: None,
        },
        now_ms: 2000,
    };
    let next = done(&used, &later);
    assert_eq!(next.trust.invitations.keys().collect::<Vec<_>>(), [&2]);
    assert_eq!(refused(&next, &using(7)), "the join token is not known");
}

#[test]
fn certificates_that_were_revoked_stay_so_and_invitations_with_them() {
    let node = Member::Node(NodeId(2));
    let revoke = |member: &Member, before_ms| Change::RevokeCertificates {
        member: member.clone(),
        before_ms,
    };
    let invited = done(&with_authority(), &invitation(node.clone(), 1, 2000));
    let revoked = done(&invited, &revoke(&node, 500));
    assert_eq!(revoked.trust.revoked_before_ms[&NodeId(2)], 500);
    let of_voter = revoke(&Member::Node(NodeId(1)), 500);
    assert!(refused(&invited, &of_voter).contains("votes in the directory"));
    assert!(revoked.trust.invitations.is_empty());
    assert!(revoked.after(&revoke(&node, 400)).is_err(), "nothing has changed");
    assert!(revoked.after(&revoke(&Member::Node(NodeId(99)), 1)).is_err());

    let named = Change::AddGateway { name: "edge".to_owned() };
    let with_gateway = done(&with_authority(), &named);
    assert!(refused(&with_gateway, &named).contains("edge already"));
    let edge = Member::Gateway("edge".to_owned());
    let revoked = done(&with_gateway, &revoke(&edge, 500));
    assert_eq!(revoked.trust.gateways["edge"], 500);
    let invited = done(&revoked, &invitation(edge.clone(), 1, 2000));
    let removed = done(&invited, &Change::RemoveGateway { name: "edge".to_owned() });
    assert_eq!(removed.trust.present_gateways().count(), 0);
    assert!(removed.trust.invitations.is_empty());
    assert!(removed.after(&revoke(&edge, 600)).is_err());
    // Its certificates stay refused, also if another takes the name.
    assert_eq!(removed.trust.revoked_before_ms(&edge), u64::MAX);
    assert!(refused(&removed, &named).contains("stay refused"));
}

#[test]
fn founder_that_is_replaced_or_removed_before_it_joined_holds_up_no_directory() {
    let mut cluster = cluster();
    cluster.trust.founders = [NodeId(1), NodeId(7)].into();
    let added = done(&cluster, &Change::AddNode { node: node(8, "b", "b3") });
    let id = *added.nodes.keys().last().unwrap();
    let mut founding = added.clone();
    founding.trust.founders = [NodeId(1), id].into();
    let removed = done(&founding, &Change::RemoveNode { node: id });
    assert_eq!(removed.trust.founders, [NodeId(1)].into());
    // Nor does it join any more.
    let of_both =
        [invitation(Member::Node(id), 1, 2000), invitation(Member::Node(NodeId(1)), 2, 2000)];
    let founding_by_token = done(&founding, &authority("first"));
    let invited = of_both.iter().fold(founding_by_token, |cluster, change| done(&cluster, change));
    let removed = done(&invited, &Change::RemoveNode { node: id });
    assert_eq!(removed.trust.invitations.keys().collect::<Vec<_>>(), [&2]);
    let new = node(9, "b", "b3");
    let replaced = done(&founding, &Change::ReplaceNode { old: id, new });
    let heir = *replaced.nodes.keys().last().unwrap();
    assert_eq!(replaced.trust.founders, [NodeId(1), heir].into());
}

/// A command whose answer was lost finds its change in the record.
#[test]
fn change_is_found_in_the_record_whatever_the_leader_has_filled_in() {
    let node = Member::Node(NodeId(2));
    let revoke = |before_ms| Change::RevokeCertificates { member: node.clone(), before_ms };
    let invite = |now_ms| match invitation(node.clone(), 1, 2000) {
        Change::Invite { invitation, .. } => Change::Invite { invitation, now_ms },
        other => other,
    };
    let empty = Authority { certificate_pem: String::new(), key: None, issues: false };
    for (ordered, recorded) in [
        (revoke(0), revoke(7)),
        (invite(0), invite(7)),
        (Change::AddAuthority { authority: empty }, authority("made")),
    ] {
        assert_ne!(ordered, recorded);
        assert_eq!(ordered.without_leaders_part(), recorded.without_leaders_part());
    }
    let other = Change::RevokeCertificates { member: Member::Node(NodeId(3)), before_ms: 0 };
    assert_ne!(revoke(7).without_leaders_part(), other.without_leaders_part());
}
