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
}

/// One line of `/readyz?verbose`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Stable name.
    pub name: &'static str,
    /// Why not, when it is not well.
    pub trouble: Option<String>,
    /// Whether trouble here makes the node unready.
    pub decides: bool,
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
            .filter(|check| check.decides)
            .find_map(|check| check.trouble.as_ref().map(|trouble| format!("{}: {trouble}", check.name)))
    }

    /// The lines of `/readyz?verbose`, in the manner of Kubernetes.
    #[must_use]
    pub fn verbose(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            match (&check.trouble, check.decides) {
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
    let check =
        |name, bad: bool, trouble: &str, decides| Check { name, trouble: bad.then(|| trouble.to_owned()), decides };
    Readiness {
        checks: vec![
            check("member", !facts.is_member, "this node belongs to no cluster yet", true),
            check("listeners", !facts.listening, "smtp sockets are not bound", true),
            Check { name: "spool", trouble: facts.spool_failing.clone(), decides: true },
            check("drain", facts.draining, "an administrator drains this node", true),
            check("shutdown", facts.stopping, "this process is stopping", true),
            check("connector", !facts.has_connector, "no connector is enabled", true),
            // A node that cannot follow any more would go on with rights that were revoked.
            Check { name: "raft", trouble: facts.raft_failed.clone(), decides: true },
            check("leader", !facts.has_leader, "no leader is known: changes wait, mail goes on", false),
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
    fn draining_makes_a_node_unready() {
        assert!(!assess(&Facts { draining: true, ..well() }).is_ready());
    }
}
