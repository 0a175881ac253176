//! What must hold between any two steps.

use super::{Core, RoleState};

impl Core {
    /// Checks the relations between the parts of the state. Runs after every flush in builds
    /// with debug assertions.
    ///
    /// # Panics
    /// When one does not hold: the core has a bug.
    pub fn check_invariants(&self) {
        let log = &self.log;
        assert!(log.base() <= self.commit, "only what is committed is released");
        assert!(self.commit <= log.last(), "what is committed is in the log");
        assert!(self.applied <= self.applying, "nothing is applied that was not handed out");
        assert!(self.applying <= self.commit, "nothing is handed out before it is committed");
        assert!(self.storage.durable() <= log.last(), "nothing is durable beyond the log");
        assert!(log.last_term() <= self.term, "no entry is newer than the term");
        assert!(self.commit <= self.verified, "every leader's log holds what is committed");
        assert!(self.verified <= log.last(), "what was verified is in the log");
        if let RoleState::Leader(leader) = &self.role {
            assert_eq!(self.leader, Some(self.config.id), "a leader knows itself");
            assert_eq!(log.last_term(), self.term, "a leader's term begins with its no-op");
            assert!(leader.first_own <= log.last(), "a leader never cuts its own log");
            assert!(self.storage.hard_pending().is_none(), "a leader's vote is durable");
            let followed = leader.peers.iter().map(|peer| peer.id);
            assert!(followed.eq(self.roster.others.iter().copied()), "each member is followed");
            for peer in &leader.peers {
                assert!(peer.matched < peer.next, "what matched is not sent again");
                assert!(peer.matched <= log.last(), "nobody holds more of our log than we do");
            }
        } else {
            assert_ne!(self.leader, Some(self.config.id), "who does not lead is not the leader");
        }
        if self.quiescence.quiesced {
            let follows = matches!(self.role, RoleState::Follower) && self.leader.is_some();
            let leads = matches!(self.role, RoleState::Leader(_));
            assert!(leads || follows, "only leaders and their followers rest");
            assert_eq!(self.commit, log.last(), "nobody rests before all is committed");
        }
        assert!(self.held.is_empty() || self.storage.hard_pending().is_some(), "none is forgotten");
        assert!(self.held.len() <= super::MAX_HELD, "what is held back is bounded");
        assert!(!self.members_changed, "the roster is that of the latest membership");
        assert!(self.members.index() <= log.last(), "a membership goes with its entry");
    }
}
