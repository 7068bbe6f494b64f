//! A device that sends one letter per connection and never tries again: a printer.

use std::net::{IpAddr, SocketAddr};

use crate::dialog::Dialog;

/// What a device saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `250` after the mail data: the letter is ours now.
    Promised(String),
    /// A reply that was not positive.
    Refused(String),
    /// The connection was refused, or ended without a banner.
    NoBanner(String),
    /// The connection ended in the middle.
    Broken(String),
}

/// A device.
#[derive(Clone, Copy)]
pub struct Device {
    pub source: IpAddr,
    pub target: SocketAddr,
}

impl Device {
    pub fn new(source: &str, target: SocketAddr) -> Self {
        Self { source: source.parse().unwrap(), target }
    }

    /// Sends one letter whose Message-ID is `<id@device.example>`.
    pub fn send(&self, id: &str, recipient: &str) -> Outcome {
        let mut dialog = match Dialog::connect(self.source, self.target) {
            Ok(dialog) => dialog,
            Err(error) => return Outcome::NoBanner(error.to_string()),
        };
        match dialog.reply() {
            Ok(reply) if reply.starts_with("220") => {}
            Ok(reply) => return Outcome::Refused(reply),
            Err(error) => return Outcome::NoBanner(error.to_string()),
        }
        let body = format!(
            "From: <scan@corp.example>\r\nTo: <{recipient}>\r\nMessage-ID: <{id}@device.example>\r\n\
             Subject: {id}\r\n\r\nletter {id}\r\n.\r\n"
        );
        let steps: [(&str, &str); 4] = [
            ("EHLO device.example", "250"),
            ("MAIL FROM:<scan@corp.example>", "250"),
            (&format!("RCPT TO:<{recipient}>"), "250"),
            ("DATA", "354"),
        ];
        for (line, expected) in steps {
            match dialog.command(line) {
                Ok(reply) if reply.starts_with(expected) => {}
                Ok(reply) => return Outcome::Refused(reply),
                Err(error) => return Outcome::Broken(format!("after {line}: {error}")),
            }
        }
        if let Err(error) = dialog.send(body.as_bytes()) {
            return Outcome::Broken(format!("in the mail data: {error}"));
        }
        let outcome = match dialog.reply() {
            Ok(reply) if reply.starts_with("250") => Outcome::Promised(reply),
            Ok(reply) => Outcome::Refused(reply),
            Err(error) => Outcome::Broken(format!("after the mail data: {error}")),
        };
        let _ = dialog.command("QUIT");
        outcome
    }
}
