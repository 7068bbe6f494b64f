//! What each command means in its session: sequence, `EHLO`, `STARTTLS` and the small ones. Whatever is decided by
//! the order of commands alone is decided in [`Session::out_of_order`].

use super::{Action, Awaiting, CloseReason, Hello, Note, Session, SizeMode, TlsMode};
use crate::mail::{BodyType, Domain, Reply, reply};
use crate::smtp::command::{Command, CommandError, MailCommand, RcptCommand};
use crate::smtp::{Mechanism, leniency, xclient};

impl Session {
    /// The greeting (RFC 5321 §4.2: no enhanced code).
    pub(super) fn greet(&mut self) {
        let text = match &self.config.banner {
            // Exchange's banners carry their code.
            Some(banner) => banner.strip_prefix("220 ").unwrap_or(banner).to_owned(),
            None => format!("{} ESMTP Posthouse", self.config.fqdn),
        };
        self.send(&Reply::new(220, None, text));
    }

    pub(super) fn handle_line(&mut self, line: &[u8]) {
        let command = match Command::parse(line) {
            Ok(command) => command,
            Err(error) => match leniency::understand(line, error, self.config.leniencies) {
                Some((command, used)) => {
                    self.act(Action::Note(Note::Lenient(used)));
                    command
                }
                None => return self.handle_command_error(error),
            },
        };
        match command {
            // RFC 2920 §3.1: DATA is the last command of a group. What comes before our answer may be meant as mail
            // data or as commands; guessing, even behind a refusal, would let one be taken for the other.
            Command::Data if !self.input.is_empty() => return self.desynchronized(),
            // Its octets are there whether it can stand here or not.
            Command::Bdat(chunk) => return self.handle_bdat_command(chunk),
            Command::Xclient(_) if !self.config.xclient => {
                self.act(Action::Note(Note::XclientRefused));
                return self.protocol_error(&reply::xclient_not_permitted());
            }
            _ => {}
        }
        if let Some(refusal) = self.out_of_order(&command) {
            return self.protocol_error(&refusal);
        }
        match command {
            Command::Helo(name) => self.handle_hello(name, false),
            Command::Ehlo(name) => self.handle_hello(name, true),
            Command::Mail(mail) => self.handle_mail_command(mail),
            Command::Rcpt(rcpt) => self.handle_rcpt_command(rcpt),
            Command::Data => self.handle_data_command(),
            Command::Auth(auth) => self.handle_auth_command(&auth),
            Command::StartTls => self.handle_starttls_command(),
            Command::Rset => {
                // RFC 5321 §4.1.1.5: ends the mail transaction, not the session.
                self.abandon_transaction();
                self.send_idle(&reply::resetting());
            }
            Command::Noop => self.send_idle(&reply::ok()),
            Command::Vrfy => self.send_idle(&reply::cannot_vrfy()),
            Command::Expn => self.protocol_error(&reply::not_implemented()),
            Command::Help => self.send_idle(&reply::help()),
            Command::Xclient(said) => self.handle_xclient_command(said),
            // Taken above, before it can be refused.
            Command::Bdat(chunk) => self.handle_bdat_command(chunk),
            Command::Quit => {
                self.send(&reply::closing());
                self.close(CloseReason::Quit);
            }
        }
    }

    fn handle_command_error(&mut self, error: CommandError) {
        match error {
            CommandError::NotSmtp => {
                self.send(&error.reply());
                self.close(CloseReason::NotSmtp);
            }
            CommandError::ChunkSize => self.lost_chunk(),
            CommandError::DomainName | CommandError::DomainMissing { .. } if self.config.require_ehlo_domain => {
                self.send(&error.reply());
                self.close(CloseReason::EhloDomain);
            }
            _ => self.protocol_error(&error.reply()),
        }
    }

    /// Why a command cannot stand here (RFC 5321 §4.1.4), if it cannot.
    pub(super) fn out_of_order(&self, command: &Command) -> Option<Reply> {
        use Command::{Auth, Bdat, Data, Mail, Rcpt, StartTls, Vrfy, Xclient};
        let greeted = self.hello.is_some();
        let extended = self.is_extended();
        let recipients = self.transaction.as_ref().map(|transaction| transaction.recipients.len());
        match (command, recipients) {
            (Mail(_) | Rcpt(_) | Data | Bdat(_) | Auth(_) | Vrfy | Xclient(_), _) if self.config.probe => {
                Some(reply::probe_may_not_send())
            }
            (Mail(_) | Rcpt(_) | Data | Bdat(_), _) if !greeted => Some(reply::send_hello_first()),
            // RFC 3030 §2: once a chunk has come, the letter goes on with chunks, or is given up with RSET.
            (Mail(_) | Rcpt(_) | Data | Auth(_) | StartTls | Xclient(_), _) if self.has_chunks() => {
                Some(reply::chunks_under_way())
            }
            // RFC 4954 §4: AUTH is an extension, and HELO offers none.
            (Auth(_), _) if !extended => Some(reply::send_hello_first()),
            (Auth(_), _) if self.user.is_some() => Some(reply::already_authenticated()),
            (Auth(_), Some(_)) => Some(reply::auth_during_transaction()),
            (Mail(_), _) if self.tls_missing() => Some(reply::starttls_required()),
            (Mail(_), Some(_)) => Some(reply::sender_already_specified()),
            (Mail(mail), None) => self.not_offered(mail).then(reply::unsupported_parameter),
            (Bdat(_), _) if !(extended && self.config.offer.chunking) => Some(reply::chunking_not_offered()),
            (Rcpt(_) | Data | Bdat(_), None) => Some(reply::need_mail_command()),
            (Rcpt(rcpt), Some(_)) => self.refused_parameters(rcpt),
            (Data | Bdat(_), Some(0)) => Some(reply::need_rcpt_command()),
            (Data, Some(_)) if self.body() == BodyType::BinaryMime => Some(reply::binary_needs_bdat()),
            (StartTls, _) if self.tls_active => Some(reply::tls_already_active()),
            (StartTls, _) if self.config.tls == TlsMode::Off => Some(reply::starttls_not_offered()),
            (Xclient(_), Some(_)) => Some(reply::xclient_during_transaction()),
            _ => None,
        }
    }

    fn is_extended(&self) -> bool {
        self.hello.as_ref().is_some_and(|hello| hello.extended)
    }

    /// Whether `MAIL` has a parameter that `EHLO` did not offer (RFC 5321 §4.1.1.11).
    fn not_offered(&self, mail: &MailCommand) -> bool {
        let offer = &self.config.offer;
        let used = [
            (mail.size.is_some(), offer.size != SizeMode::Disabled),
            (mail.body.is_some(), offer.eight_bit_mime || offer.offers_binary_mime()),
            (mail.body == Some(BodyType::EightBitMime), offer.eight_bit_mime),
            (mail.body == Some(BodyType::BinaryMime), offer.offers_binary_mime()),
            (mail.auth, self.mechanisms().next().is_some()),
            (mail.smtp_utf8, offer.offers_smtp_utf8()),
            (mail.ret.is_some() || mail.envid.is_some(), offer.dsn),
        ];
        let extended = self.is_extended();
        used.into_iter().any(|(used, offered)| used && !(extended && offered))
    }

    fn refused_parameters(&self, rcpt: &RcptCommand) -> Option<Reply> {
        let dsn = rcpt.notify.is_some() || rcpt.orcpt.is_some();
        if dsn && !(self.is_extended() && self.config.offer.dsn) {
            return Some(reply::unsupported_parameter());
        }
        // RFC 6531 §3.5: the whole transaction, or nothing of it.
        (rcpt.non_ascii && !self.protocol().smtp_utf8).then(reply::non_ascii_address)
    }

    pub(super) fn tls_missing(&self) -> bool {
        self.config.tls == TlsMode::Required && !self.tls_active
    }

    fn handle_hello(&mut self, name: String, extended: bool) {
        let qualified = Domain::parse(&name).is_ok_and(|domain| !domain.is_literal() && !domain.is_single_label());
        if self.config.require_ehlo_domain && !qualified {
            return self.handle_command_error(CommandError::DomainName);
        }
        // RFC 5321 §4.1.4: a second EHLO clears what RSET clears.
        self.abandon_transaction();
        self.hello = Some(Hello { name, extended });
        let source_addr = self.config.source_addr.to_canonical();
        let mut hello = Reply::new(250, None, format!("{} Hello [{source_addr}]", self.config.fqdn));
        if extended {
            for keyword in self.keywords() {
                hello = hello.line(keyword);
            }
        }
        self.send_idle(&hello);
    }

    /// The keywords in Exchange's order.
    fn keywords(&self) -> Vec<String> {
        let offer = &self.config.offer;
        let mut keywords = Vec::new();
        match offer.size {
            SizeMode::Enabled => keywords.push(format!("SIZE {}", self.config.limits.max_message_size)),
            SizeMode::EnabledWithoutValue => keywords.push("SIZE".to_owned()),
            SizeMode::Disabled => {}
        }
        if offer.pipelining {
            keywords.push("PIPELINING".to_owned());
        }
        if offer.dsn {
            keywords.push("DSN".to_owned());
        }
        if offer.enhanced_status_codes {
            keywords.push("ENHANCEDSTATUSCODES".to_owned());
        }
        // RFC 3207 §4.2: not offered again inside TLS.
        if !self.tls_active && matches!(self.config.tls, TlsMode::Available | TlsMode::Required) {
            keywords.push("STARTTLS".to_owned());
        }
        let names: Vec<&str> = self.mechanisms().map(Mechanism::as_str).collect();
        if !names.is_empty() {
            keywords.push(format!("AUTH {}", names.join(" ")));
        }
        if offer.eight_bit_mime {
            keywords.push("8BITMIME".to_owned());
        }
        if offer.offers_binary_mime() {
            keywords.push("BINARYMIME".to_owned());
        }
        if offer.chunking {
            keywords.push("CHUNKING".to_owned());
        }
        if offer.offers_smtp_utf8() {
            keywords.push("SMTPUTF8".to_owned());
        }
        if offer.limits {
            // RFC 9422 §4: the number of letters of a session is not limited, so MAILMAX is not said.
            keywords.push(format!("LIMITS RCPTMAX={}", self.config.limits.max_recipients));
        }
        if self.config.xclient {
            keywords.push(format!("XCLIENT {}", xclient::ATTRIBUTES));
        }
        keywords
    }

    fn handle_starttls_command(&mut self) {
        // RFC 3207 §4.2: what came in the clear behind STARTTLS is an injection (CVE-2011-0411), and so is whoever
        // sends it: no TLS is worth starting with such a peer.
        if !self.input.is_empty() {
            return self.desynchronized();
        }
        self.send(&reply::tls_ready());
        self.ask(Action::StartTls, Awaiting::Tls);
    }

    /// Bytes came where the client had to wait for our answer.
    pub(super) fn desynchronized(&mut self) {
        self.send(&reply::synchronization());
        self.close(CloseReason::Synchronization);
    }
}
