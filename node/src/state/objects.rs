//! The objects that the cluster agrees on, as they are kept: everything an administrator creates, and the members
//! themselves. Secrets are sealed with the cluster's data key before they come here.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::connector::{DomainKind, RemoteIpRange};

/// An object together with the revision of its last change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned<T> {
    /// Log index of the change that made it what it is.
    pub revision: u64,
    /// The object.
    pub value: T,
}

/// What the cluster is: written once, by `cluster init`, except for the counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFacts {
    /// The name that people use.
    pub name: String,
    /// A random identity, in every certificate and Raft call: members of another cluster are refused by it.
    pub id: String,
    /// Certificate of the cluster's own certificate authority, PEM.
    pub ca_pem: String,
    /// Its private key (PKCS#8 DER), sealed.
    pub sealed_ca_key: SealedSecret,
    /// The next node id to give out; ids are never used twice.
    pub next_node_id: u64,
    /// When `cluster init` ran, in unix milliseconds.
    pub created_at_ms: i64,
}

/// Bytes encrypted with the cluster's data key (see `pki::seal`), in base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SealedSecret(pub String);

/// The expiry of an entry that is added again and shall have none: absent means that it keeps the one it has.
pub const NEVER_MS: i64 = i64::MAX;

/// One range of a receive connector, with who wanted it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowlistEntry {
    /// The addresses.
    pub range: RemoteIpRange,
    /// What stands there: "printer, 3rd floor".
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// Whom to ask.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// The ticket that asked for it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ticket: String,
    /// From when on it grants nothing, in unix milliseconds. It still matches then: expiry must not hand the device
    /// to a wider range with more rights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<i64>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// When, in unix milliseconds.
    #[serde(default)]
    pub created_at_ms: i64,
}

/// A domain that we take mail for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedDomain {
    /// The name, in lower case, without `*.`.
    pub name: String,
    /// Whether every subdomain is meant too (written `*.corp.example`).
    #[serde(default)]
    pub with_subdomains: bool,
    /// Authoritative, internal relay or external relay.
    pub kind: DomainKind,
}

/// A server certificate for the devices' side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The name by which connectors refer to it.
    pub name: String,
    /// The chain, leaf first, PEM.
    pub chain_pem: String,
    /// The private key (PKCS#8 DER), sealed.
    pub sealed_key: SealedSecret,
    /// Subject alternative names.
    pub names: Vec<String>,
    /// Subject, RFC 4514.
    pub subject: String,
    /// Issuer, RFC 4514.
    pub issuer: String,
    /// End of validity, in unix milliseconds.
    pub not_after_ms: i64,
}

/// What a node is meant to be in the Raft group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberRole {
    /// Votes, once it has caught up.
    Voter,
    /// Receives the log and relays; never votes.
    Learner,
}

/// What an administrator wants of a node or a front.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    /// Takes new connections when it is ready.
    #[default]
    Active,
    /// Takes none; what is open finishes.
    Draining,
}

impl MemberState {
    /// The word that people type.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
        }
    }
}

/// One SMTP socket of a node, as fronts reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberService {
    /// Service port: 25, 587 or 465.
    pub port: u16,
    /// `host:port` to dial.
    pub address: String,
    /// Whether TLS starts with the first byte (RFC 8314 §3).
    #[serde(default)]
    pub implicit_tls: bool,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Never reused.
    pub id: u64,
    /// The name of its node file; unique.
    pub name: String,
    /// `host:port` that other members and fronts dial.
    pub rpc_address: String,
    /// Its SMTP sockets.
    #[serde(default)]
    pub services: Vec<MemberService>,
    /// What it is meant to be.
    pub role: MemberRole,
    /// What an administrator wants of it.
    pub state: MemberState,
    /// The version it last started with.
    #[serde(default)]
    pub version: String,
    /// Where its `/readyz` and `/metrics` are.
    #[serde(default)]
    pub http_address: String,
    /// When it joined, in unix milliseconds.
    #[serde(default)]
    pub joined_at_ms: i64,
    /// Its share of new connections beside the others': 1 to 256.
    #[serde(default = "member_weight_default")]
    pub weight: u32,
}

/// Like HAProxy's: a node of weight 2 gets twice as many connections as one of weight 1.
pub const MEMBER_WEIGHT_DEFAULT: u32 = 1;
/// HAProxy's own bound (doc/configuration.txt, `weight`).
pub(super) const MEMBER_WEIGHT_MAX: u32 = 256;

fn member_weight_default() -> u32 {
    MEMBER_WEIGHT_DEFAULT
}

/// A key under which a front signs its PROXY headers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontSigningKey {
    /// Named in each signed header.
    pub id: String,
    /// 32 bytes, sealed.
    pub sealed_key: SealedSecret,
}

/// A front.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontMember {
    /// The name of its file; unique among fronts.
    pub name: String,
    /// The addresses from which it dials nodes: a node demands a signed PROXY header from them.
    pub source_addresses: Vec<IpAddr>,
    /// The keys that nodes accept from it.
    pub keys: Vec<FrontSigningKey>,
    /// The key that it is to sign with; empty: the first. A new key is published first, and signed with only when
    /// every node knows it.
    #[serde(default)]
    pub signs_with: String,
    /// What an administrator wants of it.
    #[serde(default)]
    pub state: MemberState,
    /// Where its `/readyz` and `/metrics` are.
    #[serde(default)]
    pub http_address: String,
    /// When it joined, in unix milliseconds.
    #[serde(default)]
    pub joined_at_ms: i64,
}

impl FrontMember {
    /// The id of the key that it is to sign with.
    #[must_use]
    pub fn signing_key_id(&self) -> &str {
        let first = self.keys.first().map_or("", |key| key.id.as_str());
        if self.signs_with.is_empty() { first } else { &self.signs_with }
    }
}

/// What a token lets somebody become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinRole {
    /// A node that votes.
    Voter,
    /// A node that does not.
    Learner,
    /// A front.
    Front,
}

impl JoinRole {
    /// The word that people type.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Voter => "voter",
            Self::Learner => "learner",
            Self::Front => "front",
        }
    }
}

/// Permission to join, shown once as a token; only a hash of its secret is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// Public part.
    pub id: String,
    /// SHA-256 of the secret (32 random bytes), in hexadecimal.
    pub secret_sha256: String,
    /// What it lets somebody become.
    pub role: JoinRole,
    /// How many more times it can be used.
    pub uses_left: u32,
    /// Until when, in unix milliseconds.
    pub expires_at_ms: i64,
    /// Who made it.
    pub created_by: String,
}

/// Who changed what, when and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Revision of the change.
    pub revision: u64,
    /// When, in unix milliseconds, by the clock of the node that took the request.
    pub at_ms: i64,
    /// Administrator, node or `local:UID`.
    pub who: String,
    /// The peer's address, or `unix`.
    pub from: String,
    /// One line in words.
    pub what: String,
    /// What the administrator gave with `--reason`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}
