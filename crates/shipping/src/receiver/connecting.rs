//! Which source is subscribed to and when: silence, backoff, and what is begun next.

use std::time::Duration;

use super::{FailureReason, Receiver, ReceiverAction, Seal, State};

impl Receiver {
    pub(super) fn check_timeouts(
        &mut self,
        now: Duration,
        jitter: f64,
        actions: &mut Vec<ReceiverAction>,
    ) {
        match self.state {
            State::Subscribing { since, .. }
                if now.saturating_sub(since) >= self.config.connect_timeout =>
            {
                self.fail(now, jitter, FailureReason::ConnectTimeout, actions);
            }
            State::Following { heard_at, .. }
                if self.wants_more() && now.saturating_sub(heard_at) >= self.idle_timeout() =>
            {
                self.fail(now, jitter, FailureReason::Idle, actions);
            }
            _ => {}
        }
    }

    /// Longer after each failure without progress: a big batch may take its time on a narrow link,
    /// and would be sent again for ever.
    fn idle_timeout(&self) -> Duration {
        self.config
            .idle_timeout
            .saturating_mul(1 << self.attempts.min(8))
            .min(self.config.stale_after)
    }

    /// Does what is due: nothing while a stream is open, a snapshot is fetched or the backoff runs.
    pub(super) fn advance(&mut self, now: Duration, actions: &mut Vec<ReceiverAction>) {
        let State::Disconnected { retry_at } = self.state else { return };
        if self.seal == Seal::Draining && self.unpersisted.is_empty() {
            self.seal = Seal::Reported;
            actions.push(ReceiverAction::Sealed { durable: self.durable });
        }
        let Some(source) = self.source else { return };
        if self.seal != Seal::Open || now < retry_at {
            return;
        }
        if !self.needs_snapshot {
            self.streams += 1;
            let (stream, source, from) = (self.streams, source.node, self.durable);
            self.state = State::Subscribing { stream, source, since: now, from };
            actions.push(ReceiverAction::Connect { stream, source, from });
        } else if self.unpersisted.is_empty() {
            if let Some(base) = self.orphans_beyond.take() {
                actions.push(ReceiverAction::SaveOrphans { base });
            }
            self.state = State::FetchingSnapshot { source: source.node };
            actions.push(ReceiverAction::FetchSnapshot { source: source.node, epoch: self.epoch });
        }
    }

    pub(super) fn progress(&mut self, state: State) {
        self.state = state;
        self.attempts = 0;
    }

    pub(super) fn fail(
        &mut self,
        now: Duration,
        jitter: f64,
        reason: FailureReason,
        actions: &mut Vec<ReceiverAction>,
    ) {
        if let State::Subscribing { source, .. } | State::Following { source, .. } = self.state {
            let retry_at = now + self.next_backoff(jitter);
            self.disconnect(retry_at, actions);
            actions.push(ReceiverAction::SourceFailed { source, reason });
        }
    }

    /// Closes what is open and tries again at `retry_at`. A snapshot that is being fetched ends
    /// first.
    pub(super) fn disconnect(&mut self, retry_at: Duration, actions: &mut Vec<ReceiverAction>) {
        match self.state {
            State::FetchingSnapshot { .. } => {
                self.state = State::CancellingSnapshot;
                actions.push(ReceiverAction::CancelSnapshot);
            }
            State::CancellingSnapshot | State::InstallingSnapshot { .. } => {}
            State::Disconnected { .. } => self.state = State::Disconnected { retry_at },
            State::Subscribing { stream, .. } | State::Following { stream, .. } => {
                self.state = State::Disconnected { retry_at };
                actions.push(ReceiverAction::CloseStream { stream });
            }
        }
    }

    /// [Spread](spread), a delay that doubles with each failure in a row.
    pub(super) fn next_backoff(&mut self, jitter: f64) -> Duration {
        let doubled = self.config.backoff_min.saturating_mul(1 << self.attempts.min(16));
        self.attempts = self.attempts.saturating_add(1);
        spread(doubled.min(self.config.backoff_max), jitter)
    }
}

/// Between half and all of a delay.
pub(super) fn spread(delay: Duration, jitter: f64) -> Duration {
    delay.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}
