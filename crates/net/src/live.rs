//! Connections whose other side has shown a certificate, or that were accepted in the clear, so that
//! they can be ended when that is believed no more.

use std::collections::BTreeSet;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use meridian_pki::Claims;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Holders of connections that are ended at a time, as far as the log names them.
const NAMED: usize = 20;

/// Whether a connection is believed, by the claims of its certificate; `None`: it is in the clear.
pub(crate) type Judge = Box<dyn Fn(Option<&Claims>) -> bool + Send + Sync>;

/// All that are open.
#[derive(Default)]
pub(crate) struct Live(Mutex<Entries>);

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Entries {
    /// `None`: all are believed yet.
    judge: Option<Arc<Judge>>,
    entries: Vec<Entry>,
    /// How many there may be before those that have ended are looked for.
    look_at: usize,
}

struct Entry {
    /// `None`: it is in the clear.
    claims: Option<Arc<Claims>>,
    /// Its own certificate first. Empty: no authority has to vouch for it any more.
    chain: Vec<CertificateDer<'static>>,
    end: CancellationToken,
    is_open: Weak<()>,
}

impl Entry {
    /// For people.
    fn holder(&self) -> String {
        match &self.claims {
            Some(claims) => claims.subject.holder.to_string(),
            None => "in the clear".to_owned(),
        }
    }
}

/// Of one connection: ready once it is to end.
#[derive(Debug)]
pub(crate) struct End {
    wanted: Pin<Box<WaitForCancellationFutureOwned>>,
    _is_open: Arc<()>,
}

impl End {
    pub(crate) fn is_wanted(&mut self, cx: &mut Context<'_>) -> bool {
        matches!(self.wanted.as_mut().poll(cx), Poll::Ready(()))
    }
}

impl Live {
    /// `claims`: of the certificate; `None` of a connection in the clear. `chain`: its certificates,
    /// where the connection is to end when no authority vouches for them.
    pub(crate) fn add(
        &self,
        claims: Option<Arc<Claims>>,
        chain: Vec<CertificateDer<'static>>,
    ) -> End {
        let (end, is_open) = (CancellationToken::new(), Arc::new(()));
        let mut live = self.0.lock();
        if live.entries.len() >= live.look_at {
            live.entries.retain(|entry| entry.is_open.strong_count() > 0);
            live.look_at = 2 * live.entries.len() + 16;
        }
        let wanted = Box::pin(end.clone().cancelled_owned());
        live.entries.push(Entry { claims, chain, end, is_open: Arc::downgrade(&is_open) });
        End { wanted, _is_open: is_open }
    }

    /// Whether a connection with this certificate is believed.
    pub(crate) fn believes(&self, claims: &Claims) -> bool {
        self.0.lock().judge.as_ref().is_none_or(|judge| judge(Some(claims)))
    }

    /// Ends the connections that are not believed; how many.
    pub(crate) fn end_unless(&self, is_believed: Judge) -> usize {
        // First: a connection that is added meanwhile is asked about behind that.
        let is_believed = Arc::new(is_believed);
        self.0.lock().judge = Some(Arc::clone(&is_believed));
        let (ended, holders) = self.end(|entry| is_believed(entry.claims.as_deref()));
        if ended > 0 {
            tracing::info!(ended, ?holders, "connections end, whose holders are believed no more");
        }
        ended
    }

    /// Ends the connections whose certificates no authority vouches for; how many.
    pub(crate) fn end_unvouched(
        &self,
        is_vouched_for: impl Fn(&[CertificateDer<'_>]) -> bool,
    ) -> usize {
        let (ended, holders) =
            self.end(|entry| entry.chain.is_empty() || is_vouched_for(&entry.chain));
        if ended > 0 {
            tracing::info!(ended, ?holders, "connections end, for which no authority vouches");
        }
        ended
    }

    /// How many ended, and some of their holders.
    fn end(&self, may_stay: impl Fn(&Entry) -> bool) -> (usize, BTreeSet<String>) {
        let (mut ended, mut holders) = (0, BTreeSet::new());
        self.0.lock().entries.retain(|entry| {
            let (stays, is_open) = (may_stay(entry), entry.is_open.strong_count() > 0);
            if !stays {
                entry.end.cancel();
            }
            if !stays && is_open {
                ended += 1;
                if holders.len() < NAMED {
                    holders.insert(entry.holder());
                }
            }
            stays && is_open
        });
        (ended, holders)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use meridian_pki::{Holder, Subject};
    use meridian_types::NodeId;
    use tracing::field::{Field, Visit};
    use tracing::span;

    use super::*;

    /// Keeps the fields of the lines that are logged on this thread.
    #[derive(Clone, Default)]
    struct Logged(Arc<Mutex<String>>);

    impl Visit for Logged {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            *self.0.lock() += &format!("{field}={value:?};");
        }
    }

    impl tracing::Subscriber for Logged {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }

        fn event(&self, event: &tracing::Event<'_>) {
            event.record(&mut self.clone());
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    fn claims(node: u64) -> Option<Arc<Claims>> {
        Some(Arc::new(Claims {
            subject: Subject {
                cluster: "00ff00ff00ff00ff".to_owned(),
                holder: Holder::Node(NodeId(node)),
            },
            not_before: Duration::ZERO,
            not_after: Duration::MAX,
            fingerprint: String::new(),
        }))
    }

    #[test]
    fn connections_of_a_certificate_that_is_not_believed_end_and_no_others() {
        let live = Live::default();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let (mut one, mut two) = (live.add(claims(1), Vec::new()), live.add(claims(2), Vec::new()));
        drop(live.add(claims(1), Vec::new()));
        let is_two = |claims: Option<&Claims>| {
            claims.is_some_and(|claims| claims.subject.holder == Holder::Node(NodeId(2)))
        };
        assert!(live.believes(&claims(1).unwrap()));
        assert_eq!(live.end_unless(Box::new(is_two)), 1, "the other has ended by itself");
        assert!(!live.believes(&claims(1).unwrap()) && live.believes(&claims(2).unwrap()));
        assert!(one.is_wanted(&mut cx) && !two.is_wanted(&mut cx));
        assert_eq!(live.end_unless(Box::new(is_two)), 0);
    }

    #[test]
    fn connections_in_the_clear_end_where_they_are_not_believed_and_stay_with_other_authorities() {
        let live = Live::default();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let chain = vec![CertificateDer::from(vec![0])];
        let (mut one, mut plain) = (live.add(claims(1), chain), live.add(None, Vec::new()));
        assert_eq!(live.end_unvouched(|_| false), 1);
        assert!(one.is_wanted(&mut cx) && !plain.is_wanted(&mut cx));
        assert_eq!(live.end_unless(Box::new(|claims| claims.is_some())), 1);
        assert!(plain.is_wanted(&mut cx));
    }

    #[test]
    fn log_names_the_holders_whose_connections_end_and_no_others() {
        let (live, logged) = (Live::default(), Logged::default());
        let chain = || vec![CertificateDer::from(vec![0])];
        let _open = [1, 1, 2, 3].map(|node| live.add(claims(node), chain()));
        let _plain = live.add(None, Vec::new());
        drop(live.add(claims(4), Vec::new()));
        let is_two = |claims: Option<&Claims>| {
            claims.is_some_and(|claims| claims.subject.holder == Holder::Node(NodeId(2)))
        };
        let ended = tracing::subscriber::with_default(logged.clone(), || {
            live.end_unless(Box::new(is_two)) + live.end_unvouched(|_| false)
        });
        assert_eq!(ended, 5);
        let text = std::mem::take(&mut *logged.0.lock());
        let refused = "ended=4;holders={\"in the clear\", \"node/1\", \"node/3\"};";
        assert!(text.contains(refused), "{text}");
        assert!(text.contains("ended=1;holders={\"node/2\"};"), "{text}");
        assert!(!text.contains("node/4"), "{text}");
    }

    #[test]
    fn connections_that_have_ended_are_forgotten() {
        let live = Live::default();
        for _ in 0..1000 {
            drop(live.add(claims(1), Vec::new()));
        }
        assert!(live.0.lock().entries.len() < 50);
    }
}
