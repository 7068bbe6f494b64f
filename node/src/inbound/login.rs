//! What a session's logins come to: passwords by the [`super::authenticate::Authenticator`], SCRAM by its keys, EXTERNAL
//! by the certificate that the connection showed. A failure is answered late and counted, whatever failed.

use std::time::Duration;

use metrics::counter;
use rustls::pki_types::CertificateDer;

use super::authenticate::Login;
use super::driver::Driver;
use super::metrics_names::AUTH;
use super::policy::{self, Standing};
use crate::clock::now_ms;
use crate::credential::{
    Binding, CertificatePattern, ClientFirst, Credential, ScramError, ScramExchange, ScramKeys, SecretId,
};
use crate::smtp::session::AuthOutcome;
use crate::smtp::{Mechanism, Password};
use crate::tls::{Hello, judge_client_certificate};

/// A SCRAM exchange between two messages of the client.
pub(super) enum Scram {
    /// The keys whose salt was told; the client's proof comes next.
    Challenged(Box<ScramExchange>, ScramKeys),
    /// Proven, and we have proved ourselves; the client's empty line comes next.
    Proven(String, SecretId),
}

impl Driver<'_> {
    /// Checks a name and password.
    pub(super) async fn check_auth(&mut self, tls: bool, user: &str, password: &Password) -> AuthOutcome {
        let Some(opened) = &self.opened else { return AuthOutcome::Refused };
        if !self.may_log_in() {
            return AuthOutcome::Unavailable;
        }
        let view = self.shared.view();
        let login = self
            .shared
            .authenticator
            .check(&view, opened.source, &opened.connector.name, user, password.expose().to_vec())
            .await;
        match login {
            Login::Busy => {
                counter!(AUTH, "result" => "busy").increment(1);
                AuthOutcome::Unavailable
            }
            Login::Verified(user, secret) => match self.log_in(tls, user, Some(secret)) {
                Ok(_) => AuthOutcome::Accepted,
                Err(cause) => self.refuse_login(cause).await,
            },
            Login::Refused(cause) => self.refuse_login(cause).await,
        }
    }

    /// Reads a message of SCRAM or EXTERNAL.
    pub(super) async fn sasl_message(
        &mut self,
        tls: bool,
        mechanism: Mechanism,
        first: bool,
        message: &Password,
    ) -> AuthOutcome {
        if first && !self.may_log_in() {
            return AuthOutcome::Unavailable;
        }
        let scram = self.scram.take().filter(|_| !first);
        let step = match (mechanism, scram) {
            (Mechanism::External, _) => self.external(tls, message.expose()),
            (_, None) if first => self.scram_first(mechanism == Mechanism::ScramSha256Plus, message.expose()),
            (_, Some(Scram::Challenged(exchange, told))) => self.scram_final(&exchange, &told, message.expose()),
            // RFC 5802 §5: after the server's last word the client has none; SMTP gives it an empty line.
            (_, Some(Scram::Proven(user, secret))) if message.expose().is_empty() => {
                self.log_in(tls, user, Some(secret)).map(AuthOutcome::AcceptedAs)
            }
            (_, Some(Scram::Proven(..)) | None) => Ok(AuthOutcome::Malformed),
        };
        match step {
            Ok(outcome) => outcome,
            Err(cause) => self.refuse_login(cause).await,
        }
    }

    fn scram_first(&mut self, plus: bool, message: &[u8]) -> Result<AuthOutcome, &'static str> {
        let binding = Binding { plus, ..self.binding };
        let first = match ClientFirst::parse(message, &binding) {
            Ok(first) => first,
            Err(error) => return refused(error),
        };
        let user = Credential::canonical_user(first.user());
        let view = self.shared.view();
        let found = view.state.credentials.get(&user).and_then(|found| found.value.scram(now_ms()).cloned());
        let keys = found.unwrap_or_else(|| ScramKeys::fake(self.shared.options.data_key.as_bytes(), &user));
        let (exchange, challenge) = first.challenge(&keys, binding, &crate::pki::random());
        self.scram = Some(Scram::Challenged(Box::new(exchange), keys));
        Ok(AuthOutcome::Challenge(challenge))
    }

    fn scram_final(
        &mut self,
        exchange: &ScramExchange,
        told: &ScramKeys,
        message: &[u8],
    ) -> Result<AuthOutcome, &'static str> {
        let Some(opened) = &self.opened else { return Err("no connector") };
        let (user, now_ms, view) = (Credential::canonical_user(exchange.user()), now_ms(), self.shared.view());
        let found = view.state.credentials.get(&user);
        let live = found.into_iter().flat_map(|found| found.value.live_verifiers(now_ms));
        let keys = live.filter_map(|verifier| Some((verifier.secret_id(), verifier.scram.as_ref()?)));
        match exchange.finish(message, told, keys) {
            Ok((secret, last)) => {
                let usable = found.is_some_and(|found| {
                    found.value.session_ok(Some(secret), opened.source, &opened.connector.name, now_ms).is_ok()
                });
                if !usable {
                    // Before our own proof: a credential that may not be used here looks like a wrong password.
                    return Err("not usable here");
                }
                self.scram = Some(Scram::Proven(user, secret));
                Ok(AuthOutcome::Challenge(last))
            }
            Err(error) => refused(error),
        }
    }

    /// RFC 4422 appendix A: the message is whom the client wants to be, or nothing.
    fn external(&mut self, tls: bool, message: &[u8]) -> Result<AuthOutcome, &'static str> {
        let Some(user) = self.certificate_user.clone() else { return Err("no certificate of a credential") };
        let Ok(wanted) = std::str::from_utf8(message) else { return Ok(AuthOutcome::Malformed) };
        if !wanted.is_empty() && Credential::canonical_user(wanted) != user {
            return Err("the certificate stands for another user");
        }
        self.log_in(tls, user, None).map(AuthOutcome::AcceptedAs)
    }

    /// The credential that the client's certificate stands for, if it may be used here: exactly one must know it.
    pub(super) fn user_of_certificate(&self, chain: Option<&[CertificateDer<'_>]>) -> Option<String> {
        let opened = self.opened.as_ref().filter(|opened| opened.connector.offers_client_certificate(true))?;
        let (view, now_ms) = (self.shared.view(), now_ms());
        let shown = judge_client_certificate(chain?, &view.state.settings.client_ca_pem, now_ms)?;
        let mut known = view
            .state
            .credentials
            .values()
            .filter(|found| found.value.certificates.iter().any(|pattern| pattern.matches(&shown)));
        let (first, second) = (known.next(), known.next());
        let user = match (first, second) {
            (Some(found), None) => found.value.user.clone(),
            (None, _) => {
                tracing::debug!(
                    session.id = %self.session_id,
                    source.addr = %self.source,
                    trusted = shown.is_trusted,
                    fingerprint = %CertificatePattern::Fingerprint(shown.fingerprint),
                    "no credential knows the client's certificate"
                );
                return None;
            }
            (Some(one), Some(other)) => {
                tracing::warn!(
                    session.id = %self.session_id,
                    one = %one.value.user,
                    other = %other.value.user,
                    "two credentials know one client certificate: it counts for neither"
                );
                return None;
            }
        };
        let standing = Standing { user: Some(&user), ..self.standing(true)? };
        let permitted = policy::auth(&view, &standing);
        counter!(AUTH, "result" => if permitted { "verified" } else { "refused" }).increment(1);
        tracing::debug!(
            session.id = %self.session_id,
            source.addr = %opened.source,
            user = %user,
            permitted,
            "client certificate of a credential"
        );
        if permitted {
            self.shared.options.usages.logged_in(&user, now_ms);
        }
        permitted.then_some(user)
    }

    /// Remembers a device that could not shake hands. One that said nothing at all was no device: a port was looked at.
    pub(super) fn handshake_failed(&self, heard: &[u8], error: &str) {
        let hello = Hello::read(heard);
        let offered: Vec<String> = hello.versions.iter().map(ToString::to_string).collect();
        tracing::debug!(
            session.id = %self.session_id,
            source.addr = %self.source,
            offered = %offered.join(", "),
            error,
            "TLS handshake failed"
        );
        if let Some(opened) = self.opened.as_ref().filter(|_| !heard.is_empty()) {
            let (port, connector) = (opened.local.port(), opened.connector.name.as_str());
            self.shared.options.failed_handshakes.record(self.source, port, connector, hello, error, now_ms());
        }
    }

    /// Makes `user` the one whom the session acts for, if its connector takes mail from credentials.
    fn log_in(&mut self, tls: bool, user: String, secret: Option<SecretId>) -> Result<String, &'static str> {
        let before = (self.user.take(), self.secret.take());
        (self.user, self.secret) = (Some(user.clone()), secret);
        let view = self.shared.view();
        if self.standing(tls).is_some_and(|standing| policy::auth(&view, &standing)) {
            counter!(AUTH, "result" => "verified").increment(1);
            self.shared.options.usages.logged_in(&user, now_ms());
            return Ok(user);
        }
        (self.user, self.secret) = before;
        Err("the connector takes no mail from credentials")
    }

    /// Whether the device may try: who fails all the time, on whichever node, is put off before anything is checked.
    fn may_log_in(&self) -> bool {
        if self.shared.options.counts.may_log_in(self.source) {
            return true;
        }
        counter!(AUTH, "result" => "put_off").increment(1);
        tracing::debug!(session.id = %self.session_id, source.addr = %self.source, "login put off: too many failed");
        false
    }

    /// Counts a failure and holds its answer back.
    async fn refuse_login(&mut self, cause: &'static str) -> AuthOutcome {
        counter!(AUTH, "result" => "refused").increment(1);
        let Some(opened) = &self.opened else { return AuthOutcome::Refused };
        self.shared.options.counts.failed_login(self.source);
        tracing::debug!(
            session.id = %self.session_id,
            source.addr = %self.source,
            connector = %opened.connector.name,
            cause,
            "login refused"
        );
        self.pause(Duration::from_millis(opened.connector.auth_tarpit_interval_ms)).await;
        AuthOutcome::Refused
    }
}

/// A message that is none is the client's error; anything else is a failed login, whatever it was.
fn refused(error: ScramError) -> Result<AuthOutcome, &'static str> {
    match error {
        ScramError::Malformed => Ok(AuthOutcome::Malformed),
        ScramError::ForeignIdentity => Err("authorization identity differs from the user"),
        ScramError::Downgrade => Err("channel binding was taken out of our offer on its way"),
        ScramError::Binding => Err("channel binding does not match"),
        ScramError::Proof => Err("unknown user or wrong password"),
    }
}
