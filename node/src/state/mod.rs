//! What the cluster agrees on: the objects, every change that can happen to them, and `apply`. Pure and
//! deterministic: no I/O, no clock, no randomness, no iteration in hash order. The same log gives the same bytes on
//! every node.

mod apply;
mod certificate_name;
mod command;
#[cfg(test)]
mod connector_tests;
mod connectors;
mod entries;
mod fronts;
mod gains;
mod history;
pub mod lint;
mod objects;
mod refusals;
mod settings;
mod snapshot;
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use apply::{Applied, apply};
pub use certificate_name::CertificateName;
pub use command::{
    COMMAND_VERSION, Change, Command, CommandDecodeError, NewCluster, Outcome, Refusal, RefusalKind, RelayGain,
};
pub use connectors::{ALLOWLIST_ENTRIES_MAX, CONNECTORS_MAX};
pub use entries::Entries;
pub use history::{
    HISTORY_OBJECTS_MAX, HISTORY_OBJECTS_PER_CHANGE_MAX, HISTORY_RECORDS_MAX, HistoryRecord, names as object_named,
};
pub use objects::{
    AcceptedDomain, AllowlistEntry, AuditRecord, Certificate, ClusterFacts, FrontMember, FrontSigningKey, JoinRole,
    JoinToken, MEMBER_WEIGHT_DEFAULT, Member, MemberRole, MemberService, MemberState, NEVER_MS, SealedSecret,
    Versioned,
};
pub use settings::{RELAY_ADDRESSES_MAX_DEFAULT, SETTING_KEYS, SettingKey, Settings};
pub use snapshot::{ObjectKey, SnapshotError, StateDigest};
pub use view::StateView;

use crate::connector::{ReceiveConnector, SendConnector};
use crate::credential::Credential;

/// How many audit records are kept; the oldest go first.
pub const AUDIT_RECORDS_MAX: usize = 10_000;

/// A collection of objects. Clones share it until one of them changes.
pub type Objects<K, V> = Arc<BTreeMap<K, Versioned<V>>>;

/// Everything the cluster agrees on. A clone is cheap: the collections are shared until changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterState {
    /// What the cluster is; absent before `cluster init`.
    pub facts: Option<Arc<ClusterFacts>>,
    /// Cluster-wide settings.
    pub settings: Arc<Settings>,
    /// Receive connectors by name.
    pub connectors: Objects<String, Arc<ReceiveConnector>>,
    /// Their ranges: connector name, then range.
    pub allowlist: Arc<BTreeMap<String, Entries>>,
    /// Accepted domains by name.
    pub domains: Objects<String, AcceptedDomain>,
    /// Routes by name.
    pub routes: Objects<String, Arc<SendConnector>>,
    /// Credentials by user name.
    pub credentials: Objects<String, Arc<Credential>>,
    /// Certificates by name.
    pub certificates: Objects<String, Arc<Certificate>>,
    /// Nodes by id.
    pub members: Objects<u64, Member>,
    /// Fronts by name.
    pub fronts: Objects<String, FrontMember>,
    /// Join tokens by id.
    pub join_tokens: Objects<String, JoinToken>,
    /// Audit records by revision, the newest [`AUDIT_RECORDS_MAX`].
    pub audit: Arc<BTreeMap<u64, AuditRecord>>,
    /// What the newest changes replaced, by revision.
    pub history: Arc<BTreeMap<u64, Arc<HistoryRecord>>>,
    /// Hash of all of the above, kept up to date change by change.
    pub digest: StateDigest,
}

impl ClusterState {
    /// Finds a node by name.
    #[must_use]
    pub fn member_named(&self, name: &str) -> Option<&Member> {
        self.members.values().map(|member| &member.value).find(|member| member.name == name)
    }

    /// The ranges of a connector, narrowest first within the order of addresses.
    pub fn ranges_of(&self, connector: &str) -> impl Iterator<Item = &AllowlistEntry> {
        self.allowlist.get(connector).into_iter().flat_map(|entries| entries.values()).map(|entry| &entry.value)
    }
}
