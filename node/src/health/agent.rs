//! Answers HAProxy's agent checks (doc/configuration.txt, `agent-check`): a connection, one line, closed. It says
//! what the pushed readiness says, for balancers that are not ours.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::shutdown::Scope;

/// Agents are asked by a handful of balancers.
const CONNECTIONS_MAX: usize = 32;
/// How long a balancer may take to read one line.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// After a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a node says to an agent check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentState {
    /// It wants no new connections, and those that are open go on.
    pub draining: bool,
    /// Why it is not well, if it is not.
    pub trouble: Option<String>,
    /// Its share of the weight that the balancer's file gives it.
    pub weight_percent: u32,
}

impl AgentState {
    /// The line. Only the agent can take back what the agent said, so every answer sets both the administrative
    /// state (`ready`, `drain`) and the operational one (`up`, `down`).
    #[must_use]
    pub fn line(&self) -> String {
        match (&self.trouble, self.draining) {
            (_, true) => "drain up\n".to_owned(),
            (Some(trouble), false) => {
                let plain: String = trouble.chars().filter(|c| !c.is_control() && *c != '#').collect();
                format!("ready down#{plain}\n")
            }
            (None, false) => format!("ready up {}%\n", self.weight_percent.clamp(1, 100)),
        }
    }
}

/// Answers on `listener` until `scope` ends.
pub fn serve(listener: TcpListener, state: Arc<dyn Fn() -> AgentState + Send + Sync>, scope: &Scope) {
    let tasks = scope.clone();
    scope.spawn_until_ended(async move {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let Ok((mut stream, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let line = state().line();
            tasks.spawn_until_ended(async move {
                let _place = place;
                let said = async {
                    stream.write_all(line.as_bytes()).await?;
                    stream.shutdown().await
                };
                // A balancer that does not listen asks again.
                let _ = tokio::time::timeout(ANSWER_TIMEOUT, said).await;
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_takes_back_the_one_before() {
        let well = AgentState { draining: false, trouble: None, weight_percent: 50 };
        assert_eq!(well.line(), "ready up 50%\n");
        assert_eq!(AgentState { draining: true, ..well.clone() }.line(), "drain up\n");
        let sick = AgentState { trouble: Some("disk: full #1\nup".to_owned()), ..well };
        assert_eq!(sick.line(), "ready down#disk: full 1up\n", "one line, whatever the trouble is called");
    }
}
