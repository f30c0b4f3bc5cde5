//! Bugs to plant.

/// Bugs to plant, to see that the invariants catch them. They are in the simulation's part of a
/// node, or in what it tells the real parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Bug {
    /// An answer leaves without asking whether the lease is still held.
    SkipTheFence,
    /// A node answers a seal, and goes on as if it had not.
    ForgetTheSeal,
    /// A lease is counted from when the grant came, not from when it was asked for.
    CountLeaseFromReceipt,
    /// The grantor takes every lease for run out. It also judges a loss as early as it may: with
    /// its usual patience all leases of a lost region have run out by then anyway, and the wait
    /// would not be missed. `no_ack_under_stale_lease` sees what comes of it.
    /// `starvation_is_not_loss` is not asked, since it would see the haste, and not the wait.
    SkipTheWait,
    /// A seal is not written down, and a node that starts does not take it from the directory either:
    /// a restart undoes it.
    LoseTheSealInACrash,
    /// The directory takes new voters for the deciding ones while the group still changes. `heals`
    /// sees it (the change is taken for done, and never brought to its end) and `loss_reported`
    /// (the loss is taken for bounded by the new voters alone), each in about one of a thousand
    /// runs; `starvation_is_not_loss` more rarely. Mostly the report counts what leaders had told
    /// the directory, and is right all the same. Tests of `failover` show the rule by itself.
    ForgetTheFormerVoters,
    /// The controller judges by the silence of others right after it stood still itself.
    JudgeWhileStarved,
    /// The controller takes a region without a leader for lost, though its nodes answer.
    TakeStarvationForLoss,
    /// Messages are handed out without asking whether the lease is still held: a region that was
    /// failed over hands out what the next one has handed out, or what is done there.
    HandOutWithoutTheLease,
    /// A new leader hands out older messages at once: it does not wait for gateways to say what
    /// their listeners hold.
    HandOutAtOnce,
}
