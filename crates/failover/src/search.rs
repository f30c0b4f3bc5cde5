//! The search for the directory's leader: which nodes a node asks for its lease, and when.

use std::time::Duration;

use meridian_types::NodeId;

/// Between two renewals of the epoch lease, while the directory's leader is known.
pub const RENEW: Duration = Duration::from_millis(500);
/// Instead, while no leader is known.
pub const SEARCH: Duration = Duration::from_millis(250);
/// A leader that has granted nothing for so long is looked for elsewhere.
pub const LEADER_SILENT: Duration = Duration::from_secs(1);
/// One try. Longer than two rounds over the longest WAN link: the leader may have to ask its
/// quorum.
pub const RENEW_TIMEOUT: Duration = Duration::from_millis(1500);
/// A question to one node in a try. A node that is cut off does not say so: half of the time is for another.
pub const ASK_TIMEOUT: Duration = Duration::from_millis(750);
/// The first grant waits for a commit of the directory, which is soon done.
pub const FIRST_GRANT_AFTER: Duration = Duration::from_millis(50);

/// Nodes that are asked one after the other, at most: each names the next.
const HOPS: u8 = 3;

const _: () = assert!(ASK_TIMEOUT.as_millis() * 2 == RENEW_TIMEOUT.as_millis());

/// A node's knowledge of the directory's leader.
///
/// Renewals do not wait for each other: an answer that never comes delays none.
#[derive(Debug, Default)]
pub struct LeaderSearch {
    /// The node that granted the newest lease, and when.
    leader: Option<(NodeId, Duration)>,
    /// Since this process started.
    was_granted: bool,
    /// When the try begins that a reply has last asked for.
    again_at: Duration,
}

/// A question that is under way, and is passed on from node to node.
#[derive(Debug)]
pub struct Inquiry {
    first: NodeId,
    asked: NodeId,
    left: u8,
}

/// The answer of a node that was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    Granted,
    /// The leader wants nothing of this node.
    Refused,
    /// The node that leads, if it is known there. The leader itself names none while it has
    /// something to commit first.
    NotLeader(Option<NodeId>),
    /// Nothing, or nothing that can be understood.
    Nothing,
}

/// The consequence of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// This node is asked the same.
    Ask(NodeId),
    /// The try has come to its end: none of its other questions is waited for.
    Done,
    /// This question has come to its end in vain. `again`: another try is worth it so soon.
    Over { again: Option<Duration> },
}

impl LeaderSearch {
    /// When the next try begins, after one has begun, unless it is wanted before.
    pub fn next_in(&self, now: Duration) -> Duration {
        if self.present(now).is_some() { RENEW } else { SEARCH }
    }

    /// The questions of a try: to the leader; while none is known, to all nodes that may know it,
    /// so that a leader that was lost with its data center costs no lease.
    pub fn begin(&self, now: Duration, voters: impl FnOnce() -> Vec<NodeId>) -> Vec<Inquiry> {
        let asked = self.present(now).map_or_else(voters, |leader| vec![leader]);
        asked.into_iter().map(|node| Inquiry { first: node, asked: node, left: HOPS - 1 }).collect()
    }

    /// To be called once for each question to a node, with [`Reply::Nothing`] after
    /// [`ASK_TIMEOUT`]. A lease that was granted is held by then.
    pub fn replied(&mut self, now: Duration, inquiry: &mut Inquiry, reply: Reply) -> Next {
        match reply {
            Reply::Granted | Reply::Refused => {
                self.was_granted |= reply == Reply::Granted;
                self.leader = Some((inquiry.asked, now));
                return Next::Done;
            }
            Reply::NotLeader(Some(leader)) if leader != inquiry.asked && inquiry.left > 0 => {
                (inquiry.asked, inquiry.left) = (leader, inquiry.left - 1);
                return Next::Ask(leader);
            }
            Reply::NotLeader(_) | Reply::Nothing => {}
        }
        self.leader.take_if(|(leader, _)| *leader == inquiry.first);
        // This node's incarnation may be being committed.
        let is_awaited = reply == Reply::NotLeader(None) && !self.was_granted;
        // A try has as many questions as there are voters: if each asked for another try while the
        // directory elects its leader, tries would multiply.
        let is_the_first = now >= self.again_at;
        let again = (is_awaited && is_the_first).then_some(FIRST_GRANT_AFTER);
        if let Some(pause) = again {
            self.again_at = now + pause;
        }
        Next::Over { again }
    }

    /// The node that has granted a lease of late.
    fn present(&self, now: Duration) -> Option<NodeId> {
        let is_present = |granted| now.saturating_sub(granted) < LEADER_SILENT;
        self.leader.filter(|(_, granted)| is_present(*granted)).map(|(leader, _)| leader)
    }
}

impl Inquiry {
    /// The node that is to answer.
    pub fn asked(&self) -> NodeId {
        self.asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Next = Next::Over { again: None };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn begin(search: &LeaderSearch, now: u64) -> Vec<Inquiry> {
        search.begin(ms(now), || [1, 4, 6].map(NodeId).to_vec())
    }

    fn asked(inquiries: &[Inquiry]) -> Vec<u64> {
        inquiries.iter().map(|inquiry| inquiry.asked().0).collect()
    }

    /// Node 4 has granted a lease at that time.
    fn granted(now: u64) -> LeaderSearch {
        let mut search = LeaderSearch::default();
        let mut inquiries = begin(&search, now);
        assert_eq!(search.replied(ms(now), &mut inquiries[1], Reply::Granted), Next::Done);
        search
    }

    #[test]
    fn leader_alone_is_asked_until_it_has_granted_nothing_for_too_long() {
        let search = LeaderSearch::default();
        assert_eq!((asked(&begin(&search, 0)), search.next_in(ms(0))), (vec![1, 4, 6], SEARCH));
        let search = granted(2000);
        for (now, wanted, next) in
            [(2000, vec![4], RENEW), (2999, vec![4], RENEW), (3000, vec![1, 4, 6], SEARCH)]
        {
            assert_eq!((asked(&begin(&search, now)), search.next_in(ms(now))), (wanted, next));
        }
    }

    #[test]
    fn tries_do_not_multiply_while_the_directory_has_no_leader() {
        let mut search = LeaderSearch::default();
        let (mut due, mut tries) = (vec![0], 0);
        while let Some(now) = due.pop().filter(|_| tries < 1000) {
            tries += 1;
            for (mut inquiry, after) in begin(&search, now).into_iter().zip([1, 5, 20]) {
                let reply = search.replied(ms(now + after), &mut inquiry, Reply::NotLeader(None));
                if let Next::Over { again: Some(pause) } = reply
                    && now < 1000
                {
                    due.push(now + after + u64::try_from(pause.as_millis()).unwrap());
                }
            }
        }
        assert!((15..=21).contains(&tries), "{tries} tries in a second");
    }

    #[test]
    fn node_that_is_named_is_asked_and_granting_becomes_the_leader() {
        let mut search = LeaderSearch::default();
        let mut first = begin(&search, 0).remove(0);
        assert_eq!(
            search.replied(ms(1), &mut first, Reply::NotLeader(Some(NodeId(6)))),
            Next::Ask(NodeId(6))
        );
        assert_eq!(search.replied(ms(2), &mut first, Reply::Granted), Next::Done);
        assert_eq!(asked(&begin(&search, 3)), [6]);
    }

    #[test]
    fn nodes_that_name_each_other_are_left_after_three_questions() {
        let mut search = granted(0);
        let mut first = begin(&search, 1).remove(0);
        for named in [1, 4] {
            let reply = Reply::NotLeader(Some(NodeId(named)));
            assert_eq!(search.replied(ms(1), &mut first, reply), Next::Ask(NodeId(named)));
        }
        assert_eq!(search.replied(ms(1), &mut first, Reply::NotLeader(Some(NodeId(1)))), NONE);
        assert_eq!(asked(&begin(&search, 1)), [1, 4, 6], "the leader that was known leads no more");
    }

    #[test]
    fn node_that_names_itself_is_not_asked_again() {
        let mut search = LeaderSearch::default();
        let mut first = begin(&search, 0).remove(0);
        assert_eq!(search.replied(ms(1), &mut first, Reply::NotLeader(Some(NodeId(1)))), NONE);
    }

    #[test]
    fn leader_that_is_silent_or_leads_no_more_is_looked_for_among_all() {
        for reply in [Reply::Nothing, Reply::NotLeader(None)] {
            let mut search = granted(0);
            let mut inquiry = begin(&search, 500).remove(0);
            assert_eq!(search.replied(ms(600), &mut inquiry, reply), NONE);
            assert_eq!(asked(&begin(&search, 600)), [1, 4, 6]);
            assert_eq!(search.next_in(ms(600)), SEARCH);
        }
    }

    #[test]
    fn silence_of_another_node_takes_nothing_from_the_leader() {
        let mut search = LeaderSearch::default();
        let mut inquiries = begin(&search, 0);
        search.replied(ms(1), &mut inquiries[1], Reply::Granted);
        assert_eq!(search.replied(ms(750), &mut inquiries[0], Reply::Nothing), NONE);
        assert_eq!(asked(&begin(&search, 750)), [4]);
    }

    #[test]
    fn first_grant_is_asked_for_again_soon_and_a_later_one_is_not() {
        let soon = Next::Over { again: Some(FIRST_GRANT_AFTER) };
        let mut search = LeaderSearch::default();
        let mut first = begin(&search, 0).remove(0);
        assert_eq!(search.replied(ms(1), &mut first, Reply::NotLeader(None)), soon);
        let mut search = granted(1);
        let mut later = begin(&search, 2).remove(0);
        assert_eq!(search.replied(ms(3), &mut later, Reply::NotLeader(None)), NONE);
    }

    #[test]
    fn node_that_is_refused_goes_on_asking_the_leader_alone() {
        let mut search = LeaderSearch::default();
        let mut first = begin(&search, 0).remove(0);
        assert_eq!(search.replied(ms(1), &mut first, Reply::Refused), Next::Done);
        assert_eq!((asked(&begin(&search, 2)), search.next_in(ms(2))), (vec![1], RENEW));
    }
}
