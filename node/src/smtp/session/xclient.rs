//! `XCLIENT`: the session begins anew, as that of the client for whom the peer speaks.

use std::time::Instant;

use super::{Action, Awaiting, CloseReason, Hello, Session, SessionConfig};
use crate::mail::Reply;
use crate::smtp::Mechanism;
use crate::smtp::command::CommandError;
use crate::smtp::xclient::Xclient;

impl Session {
    pub(super) fn handle_xclient_command(&mut self, said: Result<Box<Xclient>, CommandError>) {
        match said {
            Ok(client) => {
                // Postfix: HELO and PROTO stand for the command that the proxy has heard.
                let hello = client
                    .helo
                    .as_ref()
                    .map(|name| Hello { name: name.clone(), extended: client.extended.unwrap_or_default() });
                self.ask(Action::Xclient(client), Awaiting::Xclient { hello });
            }
            Err(error) => self.protocol_error(&error.reply()),
        }
    }

    /// The driver's answer to [`Action::Xclient`]: what a session of that client is told at its beginning, or why
    /// there is none. Whatever was said before is forgotten; whoever logged in has to do it again. The errors made so
    /// far, the age of the connection and its TLS stay.
    pub fn handle_xclient(&mut self, now: Instant, decided: Result<SessionConfig, Reply>) {
        self.now = now;
        let hello = match self.awaiting.take() {
            Some(Awaiting::Xclient { hello }) => hello,
            other => {
                self.awaiting = other;
                return;
            }
        };
        self.progress();
        match decided {
            Ok(config) => {
                // The peer is the same, and may go on speaking for others.
                self.config = SessionConfig { xclient: true, ..config };
                self.hello = hello;
                self.user = None;
                // The certificate is the peer's own, not that of the client for whom it speaks.
                self.certificate_user = None;
                self.possible.retain(|mechanism| *mechanism != Mechanism::External);
                self.abandon_transaction();
                self.greet();
            }
            Err(reply) => {
                self.send(&reply);
                self.close(CloseReason::Refused);
            }
        }
    }
}
