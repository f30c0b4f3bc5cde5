//! The rights that each request needs: the one place that says what a token may do.
//!
//! | route | permission | keys of a token with prefixes |
//! |---|---|---|
//! | metadata | none: any token of the database | – |
//! | `snapshot_read` | `read` | each range lies within one prefix; none is clipped |
//! | `watch` | `watch` | each watched key |
//! | `atomic_write`, which needs one of `write`, `enqueue` and `listen` | by what is in it: | |
//! | – nothing but checks | `write` | |
//! | – a check, which tells whether a key has a version | `read` | its key |
//! | – a mutation | `write` | its key |
//! | – a sum with bounds that does not clamp, whose refusal compares the value with a bound | also `read` | its key |
//! | – a message, also in reserved keys | `enqueue` | – |
//! | – a key if undelivered | `write` | that key |
//! | – an acknowledgement in reserved keys | `listen` | – |
//! | `changes` | `read` | all that begin with the bytes asked for; the feed leaves out a key whose last text only begins as that of the prefix |
//! | `queue/enqueue` | `enqueue`; `write` for keys if undelivered | each key if undelivered |
//! | `queue/listen`, `poll`, `report` | `listen` | – : messages have no key, and no listener is told keys if undelivered |
//! | `queue/list`, which shows keys if undelivered | `read` | not for a token with prefixes |
//! | `queue/change` | `manage` | not for a token with prefixes |
//! | files | no token | – |
//!
//! A webhook is set by an operator at the directory and has no token. A sum without bounds, `min` and
//! `max` tell their client at most the type of the stored value, in their refusal: they need `write`
//! alone.

use bytes::Bytes;
use meridian_types::{
    Check, Enqueue, Mutation, MutationKind, Permission, ReadRange, Settlement, Transaction,
};

use crate::Grant;
use crate::forbidden::Forbidden;
use crate::route::{QueueRoute, Route};

/// The rights that a request needs before its body is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needed {
    /// One of these.
    any_of: &'static [Permission],
    /// The request, in words.
    by: &'static str,
    is_about_whole_queue: bool,
}

impl Needed {
    /// `None`: none but a token for the database, or no token.
    pub(crate) fn of(route: Route<'_>) -> Option<Self> {
        let (any_of, by): (&'static [Permission], _) = match route {
            Route::Metadata(_) | Route::File(_) => return None,
            Route::SnapshotRead(_) => (&[Permission::Read], "a read"),
            Route::Watch(_) => (&[Permission::Watch], "a watch"),
            Route::AtomicWrite => {
                (&[Permission::Write, Permission::Enqueue, Permission::Listen], "an atomic write")
            }
            Route::Changes => (&[Permission::Read], "a change feed"),
            Route::Queue(route) => match route {
                QueueRoute::Listen | QueueRoute::Poll => {
                    (&[Permission::Listen], "a listener of a queue")
                }
                QueueRoute::Report => (&[Permission::Listen], "a report on messages"),
                QueueRoute::Enqueue => (&[Permission::Enqueue], "a message"),
                QueueRoute::List => (&[Permission::Read], "a list of a queue"),
                QueueRoute::Change => (&[Permission::Manage], "an order on messages of a queue"),
            },
        };
        let is_about_whole_queue =
            matches!(route, Route::Queue(QueueRoute::List | QueueRoute::Change));
        Some(Self { any_of, by, is_about_whole_queue })
    }

    pub(crate) fn check(self, grant: &Grant) -> Result<(), Forbidden> {
        let Self { any_of, by, is_about_whole_queue } = self;
        if let Some(permission) = any_of.first()
            && !any_of.iter().any(|permission| grant.may(*permission))
        {
            return Err(Forbidden::Permission { permission: *permission, by });
        }
        if is_about_whole_queue && grant.is_within_prefixes() {
            return Err(Forbidden::WholeQueue { by });
        }
        Ok(())
    }
}

pub(crate) fn check_ranges(grant: &Grant, ranges: &[ReadRange]) -> Result<(), Forbidden> {
    let is_open = ranges.iter().all(|range| grant.opens_range(&range.start, &range.end));
    if is_open { Ok(()) } else { Err(Forbidden::Key { of: "a range of the read" }) }
}

pub(crate) fn check_watched(grant: &Grant, keys: &[Bytes]) -> Result<(), Forbidden> {
    keys.iter().try_for_each(|watched| key(grant, watched, "a watched key"))
}

/// Of the prefix of a change feed, which is of bytes.
pub(crate) fn check_feed(grant: &Grant, prefix: &[u8]) -> Result<(), Forbidden> {
    key(grant, prefix, "the prefix of the change feed")
}

/// Each part of an atomic write, as it is once reserved keys were taken out of it.
pub(crate) fn check_write(grant: &Grant, transaction: &Transaction) -> Result<(), Forbidden> {
    let Transaction { checks, mutations, enqueues, settlements } = transaction;
    if mutations.is_empty() && enqueues.is_empty() && settlements.is_empty() {
        needs(grant, Permission::Write, "an atomic write")?;
    }
    for Check { key: checked, .. } in checks {
        needs(grant, Permission::Read, "a check")?;
        key(grant, checked, "the key of a check")?;
    }
    for Mutation { key: written, kind, .. } in mutations {
        needs(grant, Permission::Write, "a mutation")?;
        if let MutationKind::Sum { bounds, .. } = kind
            && !bounds.clamp
            && !(bounds.min.is_empty() && bounds.max.is_empty())
        {
            needs(grant, Permission::Read, "a sum with bounds")?;
        }
        key(grant, written, "the key of a mutation")?;
    }
    for Enqueue { keys_if_undelivered, .. } in enqueues {
        needs(grant, Permission::Enqueue, "a message")?;
        for written in keys_if_undelivered {
            needs(grant, Permission::Write, "a key if undelivered")?;
            key(grant, written, "a key if undelivered")?;
        }
    }
    for Settlement { .. } in settlements {
        needs(grant, Permission::Listen, "an acknowledgement")?;
    }
    Ok(())
}

fn needs(grant: &Grant, permission: Permission, by: &'static str) -> Result<(), Forbidden> {
    if grant.may(permission) { Ok(()) } else { Err(Forbidden::Permission { permission, by }) }
}

fn key(grant: &Grant, key: &[u8], of: &'static str) -> Result<(), Forbidden> {
    if grant.opens_key(key) { Ok(()) } else { Err(Forbidden::Key { of }) }
}
