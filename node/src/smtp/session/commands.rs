//! What each command means in its session: sequence, `EHLO`, `STARTTLS` and the small ones. Whatever is decided by
//! the order of commands alone is decided in [`Session::out_of_order`].

use super::{Action, Awaiting, CloseReason, Hello, Session, SizeMode, TlsMode};
use crate::mail::{Domain, Reply, reply};
use crate::smtp::command::{Command, CommandError};

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
            Err(error) => return self.handle_command_error(error),
        };
        if let Some(refusal) = self.out_of_order(&command) {
            return self.protocol_error(&refusal);
        }
        match command {
            Command::Helo(name) => self.handle_hello(name, false),
            Command::Ehlo(name) => self.handle_hello(name, true),
            Command::Mail(mail) => self.handle_mail_command(mail),
            Command::Rcpt(forward_path) => self.handle_rcpt_command(forward_path),
            Command::Data => self.handle_data_command(),
            Command::Auth(auth) => self.handle_auth_command(&auth),
            Command::StartTls => self.handle_starttls_command(),
            Command::Rset => {
                // RFC 5321 §4.1.1.5: ends the mail transaction, not the session.
                self.transaction = None;
                self.send_idle(&reply::resetting());
            }
            Command::Noop => self.send_idle(&reply::ok()),
            Command::Vrfy => self.send_idle(&reply::cannot_vrfy()),
            Command::Help => self.send_idle(&reply::help()),
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
            CommandError::DomainName if self.config.require_ehlo_domain => {
                self.send(&error.reply());
                self.close(CloseReason::EhloDomain);
            }
            _ => self.protocol_error(&error.reply()),
        }
    }

    /// Why a command cannot stand here (RFC 5321 §4.1.4), if it cannot.
    fn out_of_order(&self, command: &Command) -> Option<Reply> {
        let greeted = self.hello.is_some();
        let extended = self.hello.as_ref().is_some_and(|hello| hello.extended);
        let recipients = self.transaction.as_ref().map(|transaction| transaction.forward_paths.len());
        match (command, recipients) {
            (Command::Mail(_) | Command::Rcpt(_) | Command::Data | Command::Auth(_) | Command::Vrfy, _)
                if self.config.probe =>
            {
                Some(reply::probe_may_not_send())
            }
            (Command::Mail(_) | Command::Rcpt(_) | Command::Data, _) if !greeted => Some(reply::send_hello_first()),
            // RFC 4954 §4: AUTH is an extension, and HELO offers none.
            (Command::Auth(_), _) if !extended => Some(reply::send_hello_first()),
            (Command::Auth(_), _) if self.user.is_some() => Some(reply::already_authenticated()),
            (Command::Auth(_), Some(_)) => Some(reply::auth_during_transaction()),
            (Command::Mail(_), _) if self.tls_missing() => Some(reply::starttls_required()),
            (Command::Mail(_), Some(_)) => Some(reply::sender_already_specified()),
            (Command::Mail(mail), None) => {
                let offer = &self.config.offer;
                let size = mail.size.is_some() && (!extended || offer.size == SizeMode::Disabled);
                let body = mail.body.is_some() && (!extended || !offer.eight_bit_mime);
                let auth = mail.auth && (!extended || self.mechanisms().is_empty());
                (size || body || auth).then(reply::unsupported_parameter)
            }
            (Command::Rcpt(_) | Command::Data, None) => Some(reply::need_mail_command()),
            (Command::Data, Some(0)) => Some(reply::need_rcpt_command()),
            (Command::StartTls, _) if self.tls_active => Some(reply::tls_already_active()),
            (Command::StartTls, _) if self.config.tls == TlsMode::Off => Some(reply::starttls_not_offered()),
            _ => None,
        }
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
        self.transaction = None;
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
        if offer.enhanced_status_codes {
            keywords.push("ENHANCEDSTATUSCODES".to_owned());
        }
        // RFC 3207 §4.2: not offered again inside TLS.
        if !self.tls_active && matches!(self.config.tls, TlsMode::Available | TlsMode::Required) {
            keywords.push("STARTTLS".to_owned());
        }
        if !self.mechanisms().is_empty() {
            let names: Vec<&str> = self.mechanisms().iter().map(|mechanism| mechanism.as_str()).collect();
            keywords.push(format!("AUTH {}", names.join(" ")));
        }
        if offer.eight_bit_mime {
            keywords.push("8BITMIME".to_owned());
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
