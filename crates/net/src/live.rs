//! Connections that were accepted with a certificate, so that they can be ended when it is no longer
//! believed.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use meridian_pki::Claims;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// All that are open.
#[derive(Debug, Default)]
pub(crate) struct Live(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    entries: Vec<Entry>,
    /// How many there may be before those that have ended are looked for.
    look_at: usize,
}

#[derive(Debug)]
struct Entry {
    claims: Arc<Claims>,
    /// Its own certificate first.
    chain: Vec<CertificateDer<'static>>,
    end: CancellationToken,
    is_open: Weak<()>,
}

/// Of one connection: ready once it is to end.
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
    pub(crate) fn add(&self, claims: Arc<Claims>, chain: Vec<CertificateDer<'static>>) -> End {
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

    /// Ends the connections whose certificates are not believed; how many.
    pub(crate) fn end_unless(&self, is_believed: impl Fn(&Claims) -> bool) -> usize {
        self.end(|entry| is_believed(&entry.claims))
    }

    /// Ends the connections whose certificates no authority vouches for; how many.
    pub(crate) fn end_unvouched(
        &self,
        is_vouched_for: impl Fn(&[CertificateDer<'_>]) -> bool,
    ) -> usize {
        self.end(|entry| is_vouched_for(&entry.chain))
    }

    fn end(&self, may_stay: impl Fn(&Entry) -> bool) -> usize {
        let mut ended = 0;
        self.0.lock().entries.retain(|entry| {
            let stays = may_stay(entry);
            if !stays {
                entry.end.cancel();
                ended += usize::from(entry.is_open.strong_count() > 0);
            }
            stays && entry.is_open.strong_count() > 0
        });
        ended
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use meridian_pki::{Holder, Subject};
    use meridian_types::NodeId;

    use super::*;

    fn claims(node: u64) -> Arc<Claims> {
        Arc::new(Claims {
            subject: Subject {
                cluster: "00ff00ff00ff00ff".to_owned(),
                holder: Holder::Node(NodeId(node)),
            },
            not_before: Duration::ZERO,
            not_after: Duration::MAX,
            fingerprint: String::new(),
        })
    }

    #[test]
    fn connections_of_a_certificate_that_is_not_believed_end_and_no_others() {
        let live = Live::default();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let (mut one, mut two) = (live.add(claims(1), Vec::new()), live.add(claims(2), Vec::new()));
        drop(live.add(claims(1), Vec::new()));
        let is_two = |claims: &Claims| claims.subject.holder == Holder::Node(NodeId(2));
        assert_eq!(live.end_unless(is_two), 1, "the other has ended by itself");
        assert!(one.is_wanted(&mut cx) && !two.is_wanted(&mut cx));
        assert_eq!(live.end_unless(is_two), 0);
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
