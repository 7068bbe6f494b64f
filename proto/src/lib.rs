//! The wire contracts of Posthouse: what an administrator may ask (`admin.proto`), what members say to each other
//! (`raft.proto`, `peer.proto`) and what a node tells a front (`front.proto`). Generated code only; no logic lives here.

/// Version 1 of every contract. Fields are added, never reused.
pub mod v1 {
    #![allow(missing_docs, unreachable_pub, unused_qualifications, elided_lifetimes_in_paths, clippy::all)]
    tonic::include_proto!("posthouse.v1");
}

/// Metadata key under which a failed call carries an encoded [`v1::Problem`] (`-bin`: binary, see gRPC).
pub const PROBLEM_METADATA: &str = "posthouse-problem-bin";
