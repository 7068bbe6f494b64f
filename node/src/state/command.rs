//! Every change that can happen to the state, as one enum, and what came of it. Anything that [`super::apply`] could
//! not decide alone (the time, a generated id, a password hash, a sealed key) is already inside.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::objects::{
    AcceptedDomain, AllowlistEntry, Certificate, ClusterFacts, FrontSigningKey, JoinToken, Member, MemberService,
    MemberState,
};
use crate::connector::{ReceiveConnector, RemoteIpRange, SendConnector};
use crate::credential::Credential;

/// The first byte of an encoded command. A reader refuses what it does not know.
pub const COMMAND_VERSION: u8 = 1;

/// A change, with who wanted it and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// Administrator, node or `local:UID`.
    pub who: String,
    /// The peer's address, or `unix`.
    pub from: String,
    /// Unix milliseconds by the clock of the node that took the request; the only time that `apply` knows.
    pub at_ms: i64,
    /// What the administrator gave with `--reason`.
    #[serde(default)]
    pub reason: String,
    /// Refuse unless the object was last changed by this revision (0: unless it does not exist).
    #[serde(default)]
    pub if_revision: Option<u64>,
    /// The explicit override of the open-relay guard.
    #[serde(default)]
    pub accept_risk: bool,
    /// What changes.
    pub change: Change,
}

/// What a cluster begins with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewCluster {
    /// What the cluster is.
    pub facts: ClusterFacts,
    /// The first voter.
    pub member: Member,
    /// The default connectors with their ranges.
    pub connectors: Vec<(ReceiveConnector, Vec<RemoteIpRange>)>,
    /// The devices' server certificate.
    pub certificate: Certificate,
}

/// What changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The first entry of a cluster's life.
    InitCluster(Box<NewCluster>),
    /// Creates a connector (`create`) or replaces one. `ranges`: `None` leaves its ranges as they are.
    PutConnector {
        /// Whether it must not exist yet.
        create: bool,
        /// The whole connector.
        connector: Box<ReceiveConnector>,
        /// The whole set of ranges.
        ranges: Option<Vec<RemoteIpRange>>,
    },
    /// Deletes a connector and its ranges.
    DeleteConnector {
        /// Which.
        name: String,
    },
    /// Adds ranges to a connector; one that is there already gets the new note, owner, ticket and expiry.
    AddAllowlistEntries {
        /// To which.
        connector: String,
        /// What.
        entries: Vec<AllowlistEntry>,
    },
    /// Removes ranges from a connector.
    RemoveAllowlistEntries {
        /// From which.
        connector: String,
        /// What.
        ranges: Vec<RemoteIpRange>,
    },
    /// Makes connectors, ranges, accepted domains, routes and settings what they were at a revision.
    Rollback {
        /// The revision.
        to: u64,
        /// Only this object, such as `connector/scanners`.
        object: Option<String>,
    },
    /// Creates or replaces an accepted domain.
    PutDomain {
        /// Whether it must not exist yet.
        create: bool,
        /// The domain.
        domain: AcceptedDomain,
    },
    /// Deletes an accepted domain.
    DeleteDomain {
        /// Which.
        name: String,
    },
    /// Creates or replaces a route.
    PutRoute {
        /// Whether it must not exist yet.
        create: bool,
        /// The route.
        route: SendConnector,
    },
    /// Deletes a route.
    DeleteRoute {
        /// Which.
        name: String,
    },
    /// Creates or replaces a credential.
    PutCredential {
        /// Whether it must not exist yet.
        create: bool,
        /// The credential, its secrets hashed.
        credential: Credential,
    },
    /// Deletes a credential.
    DeleteCredential {
        /// Which.
        user: String,
    },
    /// Creates or replaces a certificate.
    PutCertificate {
        /// The certificate, its key sealed.
        certificate: Certificate,
    },
    /// Deletes a certificate that no connector needs.
    DeleteCertificate {
        /// Which.
        name: String,
    },
    /// Replaces the authorities of devices' own certificates.
    PutClientAuthorities {
        /// PEM; empty: none.
        pem: String,
    },
    /// Makes a join token.
    CreateJoinToken {
        /// The token, its secret hashed.
        token: JoinToken,
    },
    /// Makes a join token useless.
    RevokeJoinToken {
        /// Which.
        id: String,
    },
    /// A node joins with a token. Its id is given out here and answered as [`Outcome::Applied`]'s `assigned`.
    AddMember {
        /// The token it showed.
        token_id: String,
        /// SHA-256 of the secret it showed, in hexadecimal.
        secret_sha256: String,
        /// Its name.
        name: String,
        /// Where it is dialled.
        rpc_address: String,
        /// Its SMTP sockets.
        services: Vec<MemberService>,
        /// Its version.
        version: String,
        /// Where its HTTP is.
        http_address: String,
    },
    /// A node says where it is now.
    UpdateMember {
        /// Which.
        id: u64,
        /// Where it is dialled.
        rpc_address: String,
        /// Its SMTP sockets.
        services: Vec<MemberService>,
        /// Its version.
        version: String,
        /// Where its HTTP is.
        http_address: String,
    },
    /// Drains or resumes a node.
    SetMemberState {
        /// Which.
        name: String,
        /// What is wanted.
        state: MemberState,
        /// Drain the last active node all the same.
        force: bool,
    },
    /// Gives a node its share of new connections.
    SetMemberWeight {
        /// Which.
        name: String,
        /// Beside the others'.
        weight: u32,
    },
    /// Drains or resumes a front.
    SetFrontState {
        /// Which.
        name: String,
        /// What is wanted.
        state: MemberState,
    },
    /// Publishes a further signing key of a front: nodes accept it, nobody signs with it yet.
    AddFrontKey {
        /// Which front.
        name: String,
        /// Its new key.
        key: FrontSigningKey,
    },
    /// Has a front sign with a key that was published before.
    SignWithFrontKey {
        /// Which front.
        name: String,
        /// Which key.
        id: String,
    },
    /// Retires every key of a front but the one that it signs with.
    RetireFrontKeys {
        /// Which front.
        name: String,
        /// The key that stays: it must be the one that is signed with.
        keep: String,
    },
    /// A front joins with a token.
    AddFront {
        /// The token it showed.
        token_id: String,
        /// SHA-256 of the secret it showed, in hexadecimal.
        secret_sha256: String,
        /// Its name.
        name: String,
        /// From where it dials nodes.
        source_addresses: Vec<IpAddr>,
        /// Its signing key.
        key: FrontSigningKey,
        /// Where its HTTP is.
        http_address: String,
    },
    /// A front says from where it dials now.
    UpdateFront {
        /// Which.
        name: String,
        /// From where it dials nodes.
        source_addresses: Vec<IpAddr>,
        /// Where its HTTP is.
        http_address: String,
    },
    /// Revokes a front: its headers are believed no more.
    RemoveFront {
        /// Which.
        name: String,
    },
    /// Changes settings, all or none.
    SetSettings {
        /// Key and value as they are typed; without a value the default comes back.
        values: Vec<(String, Option<String>)>,
    },
}

/// What came of a command: the same on every node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is so now.
    Applied {
        /// False: it was so already, and nothing was written.
        changed: bool,
        /// What the administrator should know.
        #[serde(default)]
        warnings: Vec<String>,
        /// Who may relay now and could not before, the first of them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        gains: Vec<RelayGain>,
        /// The node id given out, for [`Change::AddMember`].
        #[serde(default)]
        assigned: Option<u64>,
    },
    /// It is as it was.
    Refused(Refusal),
}

/// Addresses from which strangers may relay after a change and could not before.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RelayGain {
    /// The addresses; narrower ranges inside them keep what they have.
    pub range: RemoteIpRange,
    /// The connector that took them before; empty: none did.
    pub before: String,
    /// The connector that takes them now.
    pub after: String,
}

impl std::fmt::Display for RelayGain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { range, before, after } = self;
        match before.as_str() {
            "" => write!(f, "{range} falls to connector {after:?}"),
            _ if before == after => write!(f, "{range} on connector {after:?}"),
            _ => write!(f, "{range} falls from connector {before:?} to {after:?}"),
        }
    }
}

/// Whose fault a refusal is, which decides the exit code of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// There is no such object.
    NotFound,
    /// Somebody changed it meanwhile, or the name is taken.
    Conflict,
    /// The request makes no sense.
    Invalid,
    /// The request is understood and refused: a guard, a token.
    Denied,
}

/// Why a command changed nothing: what, why and how to fix it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Whose fault.
    pub kind: RefusalKind,
    /// Stable, such as `PH-CONN-001`.
    pub code: String,
    /// What.
    pub message: String,
    /// Why.
    pub cause: String,
    /// What to do, when something can be done.
    pub fix: String,
}

/// Why bytes are not a command.
#[derive(Debug, thiserror::Error)]
pub enum CommandDecodeError {
    /// From a newer version.
    #[error("command version {0} is not known here; this node is older than the one that wrote it")]
    Version(u8),
    /// Broken.
    #[error("command cannot be decoded: {0}")]
    Broken(#[from] serde_json::Error),
    /// Nothing there.
    #[error("command is empty")]
    Empty,
}

impl Command {
    /// Encodes the command with its version byte.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![COMMAND_VERSION];
        serde_json::to_writer(&mut bytes, self).expect("a command has string keys only and a Vec takes every byte");
        bytes
    }

    /// Decodes a command.
    ///
    /// # Errors
    /// When the version is newer or the bytes are broken.
    pub fn decode(bytes: &[u8]) -> Result<Self, CommandDecodeError> {
        match bytes.split_first() {
            None => Err(CommandDecodeError::Empty),
            Some((&COMMAND_VERSION, rest)) => Ok(serde_json::from_slice(rest)?),
            Some((&version, _)) => Err(CommandDecodeError::Version(version)),
        }
    }
}

impl Outcome {
    /// Encodes the outcome, for a follower's answer.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an outcome has string keys only")
    }

    /// Decodes an outcome.
    ///
    /// # Errors
    /// When the bytes are broken.
    pub fn decode(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}
