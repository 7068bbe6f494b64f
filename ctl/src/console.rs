//! What a command works with: the flags, where answers go, and the way to the cluster, taken only when needed.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use crate::cli::Global;
use crate::client::{Client, Target, nowhere_to_go};
use crate::context::ContextStore;
use crate::error::{Exit, Failure, code};
use crate::output::Out;

/// Where a node listens for local calls unless its file says otherwise.
pub(crate) const NODE_SOCKET: &str = "/run/posthouse/node.sock";
/// Where a front does.
pub(crate) const FRONT_SOCKET: &str = "/run/posthouse/front.sock";

/// The flags and the outside of one run.
pub(crate) struct Console {
    pub(crate) global: Global,
    pub(crate) out: Out,
}

impl Console {
    /// For these flags.
    pub(crate) fn new(global: Global) -> Self {
        let out = Out { format: global.output, headers: !global.no_headers };
        Self { global, out }
    }

    /// The context file.
    ///
    /// # Errors
    /// When there is no place for it.
    pub(crate) fn contexts(&self) -> Result<ContextStore, Failure> {
        ContextStore::locate(self.global.config_dir.as_deref())
    }

    /// The cluster: a socket or endpoints that were named, else the chosen context, else the node on this machine.
    ///
    /// # Errors
    /// When there is none of these, or `--node` is not among the members.
    pub(crate) async fn client(&self) -> Result<Client, Failure> {
        let client = self.any_member()?;
        match &self.global.node {
            Some(node) => client.narrow_to(node).await,
            None => Ok(client),
        }
    }

    fn any_member(&self) -> Result<Client, Failure> {
        let timeout = self.global.timeout;
        if let Some(socket) = &self.global.socket {
            return Client::new(vec![Target::Unix(socket.clone())], None, timeout);
        }
        let named: Vec<Target> =
            self.global.endpoint.iter().map(|text| Target::parse(text)).collect::<Result<_, _>>()?;
        if !named.is_empty() && named.iter().all(|target| matches!(target, Target::Unix(_))) {
            return Client::new(named, None, timeout);
        }
        let store = self.contexts()?;
        let contexts = store.load()?;
        let chosen = contexts.choose(self.global.context.as_deref())?;
        match chosen {
            Some((_, context)) if !named.is_empty() => Client::new(named, Some(context), timeout),
            Some((name, context)) => {
                let mut targets: Vec<Target> = Vec::new();
                for text in context.endpoints.iter().chain(&context.members) {
                    let target = Target::parse(text)?;
                    if !targets.contains(&target) {
                        targets.push(target);
                    }
                }
                let mut client = Client::new(targets, Some(context), timeout)?;
                client.learn_into(store.clone(), name);
                Ok(client)
            }
            None if !named.is_empty() => Err(Failure::new(
                Exit::NotPermitted,
                code::NO_IDENTITY,
                "an endpoint needs an identity",
                "no context is chosen, so there is no authority to believe and no certificate to show",
                "--context NAME; see posthousectl context list",
            )),
            None => {
                let socket = Path::new(NODE_SOCKET);
                if !socket.exists() {
                    return Err(nowhere_to_go(socket));
                }
                Client::new(vec![Target::Unix(socket.to_owned())], None, timeout)
            }
        }
    }

    /// The process on this machine, whether or not it belongs to a cluster.
    ///
    /// # Errors
    /// When an endpoint was named that is not a socket.
    pub(crate) fn local_client(&self, default_socket: &str) -> Result<Client, Failure> {
        let socket = match (&self.global.socket, self.global.endpoint.as_slice()) {
            (Some(socket), _) => socket.clone(),
            (None, []) => PathBuf::from(default_socket),
            (None, [first, ..]) => match Target::parse(first)? {
                Target::Unix(socket) => socket,
                Target::Tcp(_) => {
                    return Err(Failure::usage(
                        "this is asked of the process on this machine",
                        "it has no identity for the network yet",
                        "run it there, with --socket PATH",
                    ));
                }
            },
        };
        Client::new(vec![Target::Unix(socket)], None, self.global.timeout)
    }

    /// Asks before something dangerous; `--yes` has answered already.
    ///
    /// # Errors
    /// When the answer is no, or nobody is there to ask.
    pub(crate) fn confirm(&self, what: &str, consequence: &str) -> Result<(), Failure> {
        if self.global.yes {
            return Ok(());
        }
        let refuse = |message: String, fix: &str| Failure::new(Exit::Usage, code::CONFIRM, message, consequence, fix);
        if !io::stdin().is_terminal() {
            return Err(refuse(format!("{what} needs a confirmation"), "repeat it with --yes"));
        }
        let unasked = |error: io::Error| {
            refuse(format!("{what} needs a confirmation, and nobody can be asked: {error}"), "--yes")
        };
        let mut err = io::stderr().lock();
        write!(err, "{what}: {consequence}\nType yes to go on: ").and_then(|()| err.flush()).map_err(unasked)?;
        let mut answer = String::new();
        io::Read::take(io::stdin().lock(), 64).read_line(&mut answer).map_err(unasked)?;
        if answer.trim().eq_ignore_ascii_case("yes") {
            return Ok(());
        }
        Err(refuse(format!("{what} was not confirmed"), "nothing was changed"))
    }
}

/// Standard output that cannot be written.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(Exit::Other, code::FILE, "the answer cannot be written", error.to_string(), "")
    }
}
