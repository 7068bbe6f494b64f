//! The Local service, on the Unix socket of a node or a front: what it is, and how it becomes part of a cluster.

use std::sync::Arc;

use posthouse_proto::v1::{self, local_server::Local};
use tonic::{Request, Response, Status};

use super::problem::{exit, problem, status};
use super::rpc::peer;
use crate::pki::{PeerIdentity, PeerInfo};

/// What a process does to become part of a cluster. The application implements it; the service only speaks for it.
#[tonic::async_trait]
pub trait Lifecycle: Send + Sync + 'static {
    /// What this process is, and what to do next.
    fn local_status(&self) -> v1::LocalStatusReply;
    /// Makes a new cluster.
    async fn init(&self, request: v1::InitClusterRequest) -> Result<v1::InitClusterReply, Status>;
    /// Joins one.
    async fn join(&self, request: v1::JoinClusterRequest) -> Result<v1::JoinClusterReply, Status>;
}

/// The Local service.
pub struct LocalService<L> {
    lifecycle: Arc<L>,
    own_uid: u32,
}

impl<L: Lifecycle> LocalService<L> {
    /// The service for `lifecycle`; root and `own_uid` may use it.
    #[must_use]
    pub fn new(lifecycle: Arc<L>, own_uid: u32) -> Self {
        Self { lifecycle, own_uid }
    }

    fn open<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let PeerInfo { identity, .. } = peer(request);
        match identity {
            PeerIdentity::Local { uid } if uid == 0 || uid == self.own_uid => Ok(()),
            other => Err(status(problem(
                exit::NOT_PERMITTED,
                "PH-AUTH-003",
                "not permitted",
                format!("{other} is neither root nor the user that runs this process"),
                "sudo posthousectl …",
            ))),
        }
    }
}

#[tonic::async_trait]
impl<L: Lifecycle> Local for LocalService<L> {
    async fn local_status(
        &self,
        request: Request<v1::LocalStatusRequest>,
    ) -> Result<Response<v1::LocalStatusReply>, Status> {
        self.open(&request)?;
        Ok(Response::new(self.lifecycle.local_status()))
    }

    async fn init_cluster(
        &self,
        request: Request<v1::InitClusterRequest>,
    ) -> Result<Response<v1::InitClusterReply>, Status> {
        self.open(&request)?;
        self.lifecycle.init(request.into_inner()).await.map(Response::new)
    }

    async fn join_cluster(
        &self,
        request: Request<v1::JoinClusterRequest>,
    ) -> Result<Response<v1::JoinClusterReply>, Status> {
        self.open(&request)?;
        self.lifecycle.join(request.into_inner()).await.map(Response::new)
    }
}
