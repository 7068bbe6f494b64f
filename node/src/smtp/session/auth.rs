//! `AUTH` (RFC 4954): which mechanisms are offered here and now, the exchange, and what failures lead to.

use std::mem;
use std::time::Instant;

use super::{Action, AuthOutcome, Awaiting, CloseReason, Phase, Session};
use crate::mail::reply;
use crate::smtp::Mechanism;
use crate::smtp::command::AuthCommand;
use crate::smtp::line::LineError;
use crate::smtp::sasl::{Exchange, SaslError, Step, encode};

impl Session {
    /// The mechanisms offered here and now.
    pub(super) fn mechanisms(&self) -> impl Iterator<Item = Mechanism> {
        let list: &[Mechanism] = match (self.tls_active, self.tls_missing()) {
            (true, _) => &self.config.auth_tls,
            // Where TLS is required, a password has no business before it.
            (false, true) => &[],
            (false, false) => &self.config.auth_plaintext,
        };
        list.iter().copied().filter(|mechanism| !mechanism.needs_connection() || self.possible.contains(mechanism))
    }

    pub(super) fn handle_auth_command(&mut self, auth: &AuthCommand) {
        let offered =
            Mechanism::find(&auth.mechanism).filter(|mechanism| self.mechanisms().any(|offered| offered == *mechanism));
        let Some(mechanism) = offered else {
            // The initial response, if there was one, has not been decoded and goes nowhere.
            return self.protocol_error(&reply::unrecognized_authentication_type());
        };
        match Exchange::begin(mechanism, auth.initial_response.as_deref()) {
            Ok((exchange, step)) => self.handle_sasl_step(exchange, step),
            Err(error) => self.handle_sasl_error(error),
        }
    }

    pub(super) fn handle_sasl_line(&mut self, line: Result<Vec<u8>, LineError>) {
        let Phase::Sasl(mut exchange) = mem::replace(&mut self.phase, Phase::Command) else {
            return;
        };
        match line.map(|line| exchange.handle_line(&line)) {
            Ok(Ok(step)) => self.handle_sasl_step(exchange, step),
            Ok(Err(error)) => self.handle_sasl_error(error),
            Err(LineError::TooLong) => self.protocol_error(&reply::authentication_line_too_long()),
            Err(LineError::BareLineEnd) => self.protocol_error(&reply::bare_line_end_in_command()),
        }
    }

    fn handle_sasl_step(&mut self, mut exchange: Exchange, step: Step) {
        match step {
            Step::Challenge(challenge) => {
                self.send(&reply::challenge(challenge));
                self.phase = Phase::Sasl(exchange);
            }
            Step::Check { user, password } => {
                let awaiting = Awaiting::Auth { user: user.clone() };
                self.ask(Action::CheckAuth { user, password, mechanism: exchange.mechanism() }, awaiting);
            }
            Step::Message(message) => {
                let (mechanism, first) = (exchange.mechanism(), exchange.count_message() == 0);
                self.ask(Action::SaslMessage { mechanism, first, message }, Awaiting::Sasl(exchange));
            }
        }
    }

    fn handle_sasl_error(&mut self, error: SaslError) {
        match error {
            SaslError::ForeignIdentity => self.refuse_logon(),
            SaslError::Cancelled | SaslError::Malformed => self.protocol_error(&error.reply()),
        }
    }

    /// The driver's answer to [`Action::CheckAuth`] and [`Action::SaslMessage`].
    pub fn handle_auth(&mut self, now: Instant, outcome: AuthOutcome) {
        self.now = now;
        let (user, exchange) = match self.awaiting.take() {
            Some(Awaiting::Auth { user }) => (Some(user), None),
            Some(Awaiting::Sasl(exchange)) => (None, Some(exchange)),
            other => {
                self.awaiting = other;
                return;
            }
        };
        self.progress();
        match (outcome, user, exchange) {
            (AuthOutcome::Accepted, Some(user), _) | (AuthOutcome::AcceptedAs(user), _, _) => {
                self.user = Some(user);
                self.send(&reply::authentication_successful());
            }
            (AuthOutcome::Challenge(challenge), _, Some(exchange)) => {
                self.send(&reply::challenge(encode(&challenge)));
                self.phase = Phase::Sasl(exchange);
            }
            // A driver that accepts nobody, or speaks where it has no word, has not accepted anybody.
            (AuthOutcome::Refused | AuthOutcome::Accepted | AuthOutcome::Challenge(_), _, _) => self.refuse_logon(),
            (AuthOutcome::Malformed, _, _) => self.protocol_error(&reply::invalid_authentication_response()),
            (AuthOutcome::Unavailable, _, _) => self.send(&reply::temporary_authentication_failure()),
            (AuthOutcome::Close(reply), _, _) => {
                self.send(&reply);
                self.close(CloseReason::Refused);
            }
        }
    }

    fn refuse_logon(&mut self) {
        self.logon_failures = self.logon_failures.saturating_add(1);
        self.send(&reply::authentication_unsuccessful());
        let max = self.config.limits.max_logon_failures;
        if max > 0 && self.logon_failures >= max {
            self.send(&reply::too_many_errors());
            self.close(CloseReason::LogonFailures);
        }
    }
}
