//! Logging in to a smart host (RFC 4954): SCRAM-SHA-256 (RFC 7677), else, inside TLS only, PLAIN (RFC 4616) or LOGIN.
//! Random bytes come in with the credential; the costly derivation is asked of the driver. Nothing here is ever logged.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::mail::Reply;

/// RFC 7677 §4: at least 4096; a server that wants more than this wants to keep us busy.
pub const SCRAM_ITERATIONS_MAX: u32 = 1_000_000;
/// Longer salts are in nobody's use.
const SCRAM_SALT_BYTES_MAX: usize = 1024;

/// Who we are towards a smart host.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientAuth {
    /// The user name.
    pub user: String,
    /// The password.
    pub password: String,
    /// Random and never used before.
    pub nonce: String,
}

impl std::fmt::Debug for ClientAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientAuth").field("user", &self.user).field("password", &"<redacted>").finish_non_exhaustive()
    }
}

/// A way to log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mechanism {
    ScramSha256,
    Plain,
    Login,
}

impl Mechanism {
    /// The best of those offered that may be used: a password in clear text only inside TLS.
    pub(super) fn choose(offered: &[String], secure: bool) -> Option<Self> {
        let has = |name: &str| offered.iter().any(|word| word == name);
        if has("SCRAM-SHA-256") {
            Some(Self::ScramSha256)
        } else if secure && has("PLAIN") {
            Some(Self::Plain)
        } else if secure && has("LOGIN") {
            Some(Self::Login)
        } else {
            None
        }
    }
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AuthStep {
    /// Send this line.
    Send(Vec<u8>),
    /// Derive the salted password (PBKDF2 with HMAC-SHA-256, 32 bytes), then go on.
    Derive { salt: Vec<u8>, iterations: u32 },
    /// We are in.
    Done,
    /// We are not, for this reason.
    Failed(String),
}

/// A login under way.
#[derive(Debug)]
pub(super) struct Login {
    auth: ClientAuth,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    PlainSent,
    LoginUser,
    LoginPassword,
    LoginSent,
    ScramFirst,
    ScramDeriving { first_bare: String, server_first: String, nonce: String },
    ScramFinal { signature: Vec<u8> },
    ScramLast,
}

impl Login {
    /// Begins. Answers the command.
    pub(super) fn begin(auth: &ClientAuth, mechanism: Mechanism) -> (Self, Vec<u8>) {
        let (stage, line) = match mechanism {
            Mechanism::Plain => {
                let secret = format!("\0{}\0{}", auth.user, auth.password);
                (Stage::PlainSent, format!("AUTH PLAIN {}", STANDARD.encode(secret)))
            }
            Mechanism::Login => (Stage::LoginUser, "AUTH LOGIN".to_owned()),
            Mechanism::ScramSha256 => {
                let first = format!("n,,{}", first_bare(auth));
                (Stage::ScramFirst, format!("AUTH SCRAM-SHA-256 {}", STANDARD.encode(first)))
            }
        };
        (Self { auth: auth.clone(), stage }, wire(&line))
    }

    /// Takes a reply.
    pub(super) fn handle_reply(&mut self, reply: &Reply) -> AuthStep {
        let refused = |reply: &Reply| AuthStep::Failed(format!("the smart host refused our login: {reply}"));
        match (reply.code.0, &self.stage) {
            (235, Stage::PlainSent | Stage::LoginSent | Stage::ScramLast) => AuthStep::Done,
            // RFC 4954 §4: a server may put its last word into the success.
            (235, Stage::ScramFinal { .. }) => match self.check_final(&text(reply)) {
                Ok(()) => AuthStep::Done,
                Err(why) => AuthStep::Failed(why),
            },
            (334, Stage::LoginUser) => {
                self.stage = Stage::LoginPassword;
                AuthStep::Send(wire(&STANDARD.encode(&self.auth.user)))
            }
            (334, Stage::LoginPassword) => {
                self.stage = Stage::LoginSent;
                AuthStep::Send(wire(&STANDARD.encode(&self.auth.password)))
            }
            (334, Stage::ScramFirst) => self.scram_first(&text(reply)),
            (334, Stage::ScramFinal { .. }) => match self.check_final(&text(reply)) {
                Ok(()) => {
                    self.stage = Stage::ScramLast;
                    AuthStep::Send(wire(""))
                }
                Err(why) => AuthStep::Failed(why),
            },
            (200..=399, _) => AuthStep::Failed(format!("the smart host answered our login with {reply}")),
            _ => refused(reply),
        }
    }

    fn scram_first(&mut self, encoded: &str) -> AuthStep {
        let failed = |what: &str| AuthStep::Failed(format!("the smart host's SCRAM challenge {what}"));
        let Some(server_first) = decode(encoded) else { return failed("is not base64") };
        let mut fields = server_first.split(',');
        let nonce = fields.next().and_then(|field| field.strip_prefix("r="));
        let salt = fields.next().and_then(|field| field.strip_prefix("s="));
        let iterations = fields.next().and_then(|field| field.strip_prefix("i=")).and_then(|count| count.parse().ok());
        let (Some(nonce), Some(salt), Some(iterations)) = (nonce, salt, iterations) else {
            return failed("cannot be read");
        };
        // RFC 5802 §5: the server's nonce continues ours, or somebody replays another exchange.
        if !nonce.starts_with(&self.auth.nonce) || nonce.len() == self.auth.nonce.len() {
            return failed("does not continue our nonce");
        }
        let Ok(salt) = STANDARD.decode(salt) else { return failed("has a salt that is not base64") };
        if salt.is_empty() || salt.len() > SCRAM_SALT_BYTES_MAX || !(1..=SCRAM_ITERATIONS_MAX).contains(&iterations) {
            return failed("asks for more than we do");
        }
        self.stage = Stage::ScramDeriving {
            first_bare: first_bare(&self.auth),
            nonce: nonce.to_owned(),
            server_first: server_first.clone(),
        };
        AuthStep::Derive { salt, iterations }
    }

    /// Takes the salted password that was asked for.
    pub(super) fn handle_salted(&mut self, salted: &[u8]) -> AuthStep {
        let Stage::ScramDeriving { first_bare, server_first, nonce } = &self.stage else {
            return AuthStep::Failed("nothing was derived".to_owned());
        };
        // RFC 5802 §3. `biws` is the channel binding `n,,` of a client without one.
        let without_proof = format!("c=biws,r={nonce}");
        let message = format!("{first_bare},{server_first},{without_proof}");
        let key = sign(salted, b"Client Key");
        let signature = sign(digest(&SHA256, &key).as_ref(), message.as_bytes());
        let proof: Vec<u8> = key.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
        let server_signature = sign(&sign(salted, b"Server Key"), message.as_bytes());
        let line = STANDARD.encode(format!("{without_proof},p={}", STANDARD.encode(proof)));
        self.stage = Stage::ScramFinal { signature: server_signature };
        AuthStep::Send(wire(&line))
    }

    /// The smart host proves that it knows the password too.
    fn check_final(&self, encoded: &str) -> Result<(), String> {
        let wrong = || "the smart host could not prove that it knows the password".to_owned();
        let Stage::ScramFinal { signature } = &self.stage else { return Err(wrong()) };
        let server_final = decode(encoded).ok_or_else(wrong)?;
        let verifier = server_final.split(',').next().and_then(|field| field.strip_prefix("v=")).ok_or_else(wrong)?;
        let verifier = STANDARD.decode(verifier).map_err(|_| wrong())?;
        aws_lc_rs::constant_time::verify_slices_are_equal(&verifier, signature).map_err(|_| wrong())
    }
}

/// RFC 5802 §5.1: `=` and `,` have a meaning.
fn first_bare(auth: &ClientAuth) -> String {
    format!("n={},r={}", auth.user.replace('=', "=3D").replace(',', "=2C"), auth.nonce)
}

fn wire(line: &str) -> Vec<u8> {
    format!("{line}\r\n").into_bytes()
}

fn text(reply: &Reply) -> String {
    // The class of an enhanced code was taken off the line; what is left is the challenge.
    reply.lines.first().map(ToString::to_string).unwrap_or_default()
}

fn decode(encoded: &str) -> Option<String> {
    String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()
}

fn sign(key: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message).as_ref().to_vec()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn auth() -> ClientAuth {
        ClientAuth { user: "user".into(), password: "pencil".into(), nonce: "rOprNGfwEbeRWgbNEkqO".into() }
    }

    fn sent(step: AuthStep) -> String {
        let AuthStep::Send(line) = step else { panic!("{step:?}") };
        let line = String::from_utf8(line).unwrap();
        String::from_utf8(STANDARD.decode(line.trim()).unwrap()).unwrap()
    }

    fn says(code: u16, text: &str) -> Reply {
        Reply::new(code, None, STANDARD.encode(text))
    }

    const SERVER_FIRST: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    fn derived(login: &mut Login) -> AuthStep {
        let AuthStep::Derive { salt, iterations } = login.handle_reply(&says(334, SERVER_FIRST)) else { panic!() };
        let mut salted = [0; 32];
        let rounds = NonZeroU32::new(iterations).unwrap();
        aws_lc_rs::pbkdf2::derive(aws_lc_rs::pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, b"pencil", &mut salted);
        login.handle_salted(&salted)
    }

    /// RFC 7677 §3.
    #[test]
    fn scram_speaks_the_rfcs_example() {
        let (mut login, line) = Login::begin(&auth(), Mechanism::ScramSha256);
        let line = String::from_utf8(line).unwrap();
        let first = line.trim().strip_prefix("AUTH SCRAM-SHA-256 ").unwrap();
        assert_eq!(STANDARD.decode(first).unwrap(), b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        assert_eq!(
            sent(derived(&mut login)),
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        let last = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
        assert_eq!(login.handle_reply(&says(334, last)), AuthStep::Send(b"\r\n".to_vec()));
        assert_eq!(login.handle_reply(&Reply::new(235, None, "welcome")), AuthStep::Done);
        let (mut short, _) = Login::begin(&auth(), Mechanism::ScramSha256);
        derived(&mut short);
        assert_eq!(short.handle_reply(&says(235, last)), AuthStep::Done);
    }

    #[test]
    fn a_smart_host_that_does_not_know_the_password_gets_no_letter() {
        let failed = |step| matches!(step, AuthStep::Failed(_));
        for last in ["v=AAAATRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=", "e=invalid-proof", "v=", ""] {
            let (mut login, _) = Login::begin(&auth(), Mechanism::ScramSha256);
            derived(&mut login);
            assert!(failed(login.handle_reply(&says(334, last))), "{last}");
        }
        let (mut login, _) = Login::begin(&auth(), Mechanism::ScramSha256);
        derived(&mut login);
        assert!(failed(login.handle_reply(&Reply::new(235, None, "welcome"))), "success without a proof");
        for first in [
            "r=other,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            "r=rOprNGfwEbeRWgbNEkqO,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            "r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4294967295",
            "r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=0",
            "r=rOprNGfwEbeRWgbNEkqOx,s=!,i=4096",
            "m=ext,r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
            "",
        ] {
            let (mut login, _) = Login::begin(&auth(), Mechanism::ScramSha256);
            assert!(failed(login.handle_reply(&says(334, first))), "{first}");
        }
    }

    #[test]
    fn plain_and_login_say_what_their_rfcs_say() {
        let (mut plain, line) = Login::begin(&auth(), Mechanism::Plain);
        assert_eq!(line, b"AUTH PLAIN AHVzZXIAcGVuY2ls\r\n");
        assert_eq!(plain.handle_reply(&Reply::new(235, None, "ok")), AuthStep::Done);
        let (mut login, line) = Login::begin(&auth(), Mechanism::Login);
        assert_eq!(line, b"AUTH LOGIN\r\n");
        assert_eq!(sent(login.handle_reply(&says(334, "Username:"))), "user");
        assert_eq!(sent(login.handle_reply(&says(334, "Password:"))), "pencil");
        let refused = login.handle_reply(&Reply::new(535, None, "no"));
        assert!(matches!(&refused, AuthStep::Failed(why) if why.contains("535 no") && !why.contains("pencil")));
    }

    #[test]
    fn a_password_goes_in_clear_text_only_inside_tls() {
        let offered = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let all = offered(&["LOGIN", "PLAIN", "SCRAM-SHA-256", "XOAUTH2"]);
        assert_eq!(Mechanism::choose(&all, false), Some(Mechanism::ScramSha256));
        assert_eq!(Mechanism::choose(&offered(&["LOGIN", "PLAIN"]), false), None);
        assert_eq!(Mechanism::choose(&offered(&["LOGIN", "PLAIN"]), true), Some(Mechanism::Plain));
        assert_eq!(Mechanism::choose(&offered(&["LOGIN"]), true), Some(Mechanism::Login));
        assert_eq!(Mechanism::choose(&offered(&["XOAUTH2"]), true), None);
    }

    #[test]
    fn a_name_with_commas_is_escaped_and_nothing_secret_is_printed() {
        let auth = ClientAuth { user: "a,b=c".into(), ..auth() };
        assert!(first_bare(&auth).starts_with("n=a=2Cb=3Dc,"));
        assert!(!format!("{auth:?}").contains("pencil"));
    }
}
