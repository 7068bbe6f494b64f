//! Pure: facts about this node in, a verdict with a reason out.

/// What the components report.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The node belongs to a cluster and its state has been read.
    pub is_member: bool,
    /// SMTP sockets are bound.
    pub listening: bool,
    /// The spool's trouble, if any.
    pub spool_failing: Option<String>,
    /// An administrator drains this node.
    pub draining: bool,
    /// The process is stopping.
    pub stopping: bool,
    /// There is a connector that could take a connection.
    pub has_connector: bool,
    /// A leader is known.
    pub has_leader: bool,
    /// Why this node no longer follows the cluster's changes: its store failed, or a newer version wrote the log.
    pub raft_failed: Option<String>,
    /// Since this process started it has not had all that the cluster has decided.
    pub catching_up: bool,
    /// It had, and has not for a while.
    pub behind: bool,
    /// What is wrong with the disk, as the probe found it: full, read-only, or a sync that does not return.
    pub disk: Option<String>,
    /// The resource that is short, in words, at level medium or above.
    pub pressure: Option<String>,
    /// A certificate that devices are shown has expired.
    pub certificate: Option<String>,
    /// A front signs with a key that this node does not know: it lags behind the cluster.
    pub front_key: Option<String>,
}

/// One line of `/readyz?verbose`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Stable name.
    pub name: &'static str,
    /// Why not, when it is not well.
    pub trouble: Option<String>,
    /// What trouble here means for new connections.
    pub weight: Weight,
}

/// What a trouble means for new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Nothing: it is shown.
    Shown,
    /// They should go elsewhere; those that come all the same are served, because the last node that is left is
    /// better than none.
    Unready,
    /// They are closed without a word.
    Refuses,
}

/// The verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// Every check, in a fixed order.
    pub checks: Vec<Check>,
}

impl Readiness {
    /// Whether fronts should send new connections.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.reason().is_none()
    }

    /// The first reason why not.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        self.checks
            .iter()
            .filter(|check| check.weight != Weight::Shown)
            .find_map(|check| check.trouble.as_ref().map(|trouble| format!("{}: {trouble}", check.name)))
    }

    /// Whether one check, by its name, has no trouble.
    #[must_use]
    pub fn is_well(&self, name: &str) -> bool {
        self.checks.iter().all(|check| check.name != name || check.trouble.is_none())
    }

    /// Why new connections are closed without a word, if they are.
    #[must_use]
    pub fn refuses(&self) -> Option<String> {
        let refusing = self.checks.iter().filter(|check| check.weight == Weight::Refuses);
        refusing.filter_map(|check| check.trouble.as_ref().map(|trouble| format!("{}: {trouble}", check.name))).next()
    }

    /// The lines of `/readyz?verbose`, in the manner of Kubernetes.
    #[must_use]
    pub fn verbose(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            match (&check.trouble, check.weight != Weight::Shown) {
                (None, _) => text.push_str(&format!("[+]{} ok\n", check.name)),
                (Some(trouble), true) => text.push_str(&format!("[-]{} failed: {trouble}\n", check.name)),
                (Some(trouble), false) => text.push_str(&format!("[!]{} degraded: {trouble}\n", check.name)),
            }
        }
        text.push_str(if self.is_ready() { "readyz check passed\n" } else { "readyz check failed\n" });
        text
    }
}

/// Folds the facts into a verdict.
#[must_use]
pub fn assess(facts: &Facts) -> Readiness {
    use Weight::{Refuses, Shown, Unready};
    let found = |name, trouble: &Option<String>, weight| Check { name, trouble: trouble.clone(), weight };
    let check = |name, bad: bool, trouble: &str, weight| found(name, &bad.then(|| trouble.to_owned()), weight);
    Readiness {
        checks: vec![
            check("member", !facts.is_member, "this node belongs to no cluster yet", Refuses),
            check("listeners", !facts.listening, "smtp sockets are not bound", Refuses),
            found("spool", &facts.spool_failing, Refuses),
            check("drain", facts.draining, "an administrator drains this node", Refuses),
            check("shutdown", facts.stopping, "this process is stopping", Refuses),
            check("connector", !facts.has_connector, "no connector is enabled", Refuses),
            // A node that cannot follow any more would go on with rights that were revoked.
            found("raft", &facts.raft_failed, Refuses),
            // One that was restored from an old copy would begin with rights that were revoked since.
            check("catching-up", facts.catching_up, "this node does not have the cluster's newest state yet", Refuses),
            // These leave it able to serve: fronts put it last, and it takes what comes when all are like it.
            check("state", facts.behind, "what the leader has committed is not applied here", Unready),
            found("disk", &facts.disk, Unready),
            found("pressure", &facts.pressure, Unready),
            found("certificate", &facts.certificate, Unready),
            found("front-key", &facts.front_key, Unready),
            check("leader", !facts.has_leader, "no leader is known: changes wait, mail goes on", Shown),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Facts {
        Facts { is_member: true, listening: true, has_connector: true, has_leader: true, ..Facts::default() }
    }

    #[test]
    fn a_node_without_a_leader_stays_ready() {
        let readiness = assess(&Facts { has_leader: false, ..well() });
        assert!(readiness.is_ready());
        assert!(readiness.verbose().contains("[!]leader degraded"));
    }

    #[test]
    fn a_failing_spool_is_named() {
        let readiness = assess(&Facts { spool_failing: Some("no space left".to_owned()), ..well() });
        assert_eq!(readiness.reason().as_deref(), Some("spool: no space left"));
    }

    #[test]
    fn an_illness_that_lets_it_serve_makes_it_unready_and_never_refuse() {
        let ill = |disk: &str| Some(disk.to_owned());
        for facts in [
            Facts { behind: true, ..well() },
            Facts { disk: ill("full"), ..well() },
            Facts { pressure: ill("disk_space 91% is medium"), ..well() },
            Facts { certificate: ill("expired"), ..well() },
            Facts { front_key: ill("unknown"), ..well() },
        ] {
            let readiness = assess(&facts);
            assert!(!readiness.is_ready() && readiness.refuses().is_none(), "{readiness:?}");
        }
        assert!(assess(&Facts { draining: true, ..well() }).refuses().is_some());
        assert!(assess(&Facts { catching_up: true, ..well() }).refuses().is_some());
        assert!(assess(&Facts { spool_failing: ill("i/o error"), ..well() }).refuses().is_some());
    }

    #[test]
    fn pressure_is_named_after_whatever_refuses() {
        let facts = Facts { pressure: Some("disk_space 91% is medium".to_owned()), ..well() };
        assert_eq!(assess(&facts).reason().as_deref(), Some("pressure: disk_space 91% is medium"));
        let readiness = assess(&Facts { draining: true, ..facts });
        assert!(readiness.reason().is_some_and(|reason| reason.starts_with("drain: ")));
    }

    #[test]
    fn draining_makes_a_node_unready() {
        assert!(!assess(&Facts { draining: true, ..well() }).is_ready());
    }
}
