//! Who may relay, by every address form that open relays have fallen for: nmap's sixteen, those of MAPS, and later
//! ones; for strangers, listed devices, credentials, failed logins and revoked rights; on 25, 587 and 465. An oracle
//! written here, not taken from the product, says for each cell whether a letter may leave and to whom.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Result;
use std::net::SocketAddr;
use std::time::Duration;

use posthouse_tests::{TestCluster, Trust, Wire, until};

/// What an address is, to somebody who reads RFC 5321 and knows which domain is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    /// Ours: everybody may write there.
    Ours(&'static str),
    /// Somebody else's: only who may relay writes there.
    External(&'static str),
    /// Ours, with another address in its local part: a way to relay for whoever is behind us.
    Routed(&'static str),
    /// No address. Nobody writes there.
    Nothing,
    /// An address of ours, and behind it what can only be a parameter that was not offered.
    Parameter,
}
use Is::{External, Nothing, Ours, Parameter, Routed};

/// As whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    /// Of our domain: what the credential may send as.
    Ours,
    /// Anybody else, `<>` included.
    Other,
    /// No address.
    Nothing,
}

struct Form {
    mail: &'static [u8],
    sender: Sender,
    rcpt: &'static [u8],
    is: Is,
    /// Said before, in place of an ordinary `EHLO`.
    hello: &'static str,
}

const fn form(mail: &'static [u8], sender: Sender, rcpt: &'static [u8], is: Is) -> Form {
    Form { mail, sender, rcpt, is, hello: "EHLO device.example" }
}

const fn from_literal(rcpt: &'static [u8], is: Is) -> Form {
    form(b"<a@[127.0.0.1]>", Sender::Other, rcpt, is)
}

const fn from_ours(rcpt: &'static [u8], is: Is) -> Form {
    form(b"<a@corp.example>", Sender::Ours, rcpt, is)
}

/// `corp.example` is ours, `partner.example` is not, 127.0.0.1 is where we are reached.
const FORMS: &[Form] = &[
    // nmap's sixteen.
    form(b"<>", Sender::Other, b"<r@partner.example>", External("r@partner.example")),
    form(b"<a@partner.example>", Sender::Other, b"<r@partner.example>", External("r@partner.example")),
    from_ours(b"<r@partner.example>", External("r@partner.example")),
    from_literal(b"<r@partner.example>", External("r@partner.example")),
    from_literal(b"<r%partner.example@[127.0.0.1]>", External("r%partner.example@[127.0.0.1]")),
    from_literal(b"<r%partner.example@corp.example>", Routed("r%partner.example@corp.example")),
    from_literal(b"<\"r@partner.example\">", Nothing),
    from_literal(b"<\"r%partner.example\">", Nothing),
    from_literal(b"<r@partner.example@[127.0.0.1]>", Nothing),
    from_literal(b"<\"r@partner.example\"@[127.0.0.1]>", External("\"r@partner.example\"@[127.0.0.1]")),
    from_literal(b"<r@partner.example@corp.example>", Nothing),
    from_literal(b"<@[127.0.0.1]:r@partner.example>", External("r@partner.example")),
    from_literal(b"<@corp.example:r@partner.example>", External("r@partner.example")),
    from_literal(b"<partner.example!r>", Nothing),
    from_literal(b"<partner.example!r@[127.0.0.1]>", External("partner.example!r@[127.0.0.1]")),
    from_literal(b"<partner.example!r@corp.example>", Routed("partner.example!r@corp.example")),
    // The same recipients in the name of our own domain, as a credential may send.
    from_ours(b"<r%partner.example@corp.example>", Routed("r%partner.example@corp.example")),
    from_ours(b"<partner.example!r@corp.example>", Routed("partner.example!r@corp.example")),
    from_ours(b"<@corp.example:r@partner.example>", External("r@partner.example")),
    from_ours(b"<r@partner.example@corp.example>", Nothing),
    // MAPS: a quoted address, sender and recipient the same, senders that look local or are none.
    from_ours(b"<\"nobody@partner.example\">", Nothing),
    form(b"<r@partner.example>", Sender::Other, b"<r@partner.example>", External("r@partner.example")),
    form(b"<u@unrelated.example>", Sender::Other, b"<r@partner.example>", External("r@partner.example")),
    form(b"<spamtest@localhost>", Sender::Other, b"<r@partner.example>", External("r@partner.example")),
    form(b"<spamtest>", Sender::Nothing, b"<r@partner.example>", External("r@partner.example")),
    form(b"<>", Sender::Other, b"<r@corp.example>", Ours("r@corp.example")),
    // Two addresses in one, in either order.
    from_ours(b"<\"r@partner.example\"@corp.example>", Routed("\"r@partner.example\"@corp.example")),
    from_ours(b"<\"r%partner.example\"@corp.example>", Routed("r%partner.example@corp.example")),
    from_ours(b"<r@corp.example@partner.example>", Nothing),
    from_ours(
        b"<partner.example!r%other.example@corp.example>",
        Routed("partner.example!r%other.example@corp.example"),
    ),
    from_ours(b"<r@corp.example>,<r@partner.example>", Nothing),
    from_ours(b"<r@corp.example> <r@partner.example>", Parameter),
    from_ours(b"<r@partner.example>@corp.example", Nothing),
    from_ours(b"<r@partner.example\0@corp.example>", Nothing),
    from_ours(b"<\"r@partner.example\\\"@corp.example>", Nothing),
    from_ours(b"<@corp.example,@other.example:r@partner.example>", External("r@partner.example")),
    // Names that are nearly ours.
    from_ours(b"<r@corp.example.partner.example>", External("r@corp.example.partner.example")),
    from_ours(b"<r@notcorp.example>", External("r@notcorp.example")),
    from_ours(b"<r@sub.corp.example>", External("r@sub.corp.example")),
    from_ours(b"<R@PARTNER.Example>", External("R@partner.example")),
    from_ours(b"<r@CORP.Example>", Ours("r@corp.example")),
    from_ours(b"<r@corp.example.>", Nothing),
    from_ours(b"<r@partner.example.>", Nothing),
    from_ours(b"<r@.corp.example>", Nothing),
    from_ours(b"<r@corp..example>", Nothing),
    // Literals: a host, never a domain that somebody accepted.
    from_ours(b"<r@[192.0.2.1]>", External("r@[192.0.2.1]")),
    from_ours(b"<r@[IPv6:::ffff:192.0.2.1]>", External("r@[ipv6:::ffff:192.0.2.1]")),
    from_ours(b"<r@[::ffff:192.0.2.1]>", Nothing),
    from_ours(b"<r@192.0.2.1>", Nothing),
    from_ours(b"<r@[corp.example]>", Nothing),
    // White space, comments, missing brackets.
    from_ours(b"<r(corp.example)@partner.example>", Nothing),
    from_ours(b"<r@partner.example(corp.example)>", Nothing),
    from_ours(b"< r@partner.example>", Nothing),
    from_ours(b"<r@corp.example >", Nothing),
    from_ours(b"<r@corp.example\t>", Nothing),
    from_ours(b"r@partner.example", Nothing),
    // Legal, odd, and ours.
    from_ours(b"<r+partner.example=r@corp.example>", Ours("r+partner.example=r@corp.example")),
    from_ours(b"<r/partner.example@corp.example>", Ours("r/partner.example@corp.example")),
    from_ours(b"<Postmaster>", Ours("postmaster")),
    from_ours(b"<postmaster@partner.example>", External("postmaster@partner.example")),
    // Claims that prove nothing.
    form(b"<a@corp.example> AUTH=<>", Sender::Ours, b"<r@partner.example>", External("r@partner.example")),
    form(
        b"<a@corp.example> AUTH=scanner@corp.example",
        Sender::Ours,
        b"<r@partner.example>",
        External("r@partner.example"),
    ),
    Form { hello: "EHLO [127.0.31.7]", ..from_ours(b"<r@partner.example>", External("r@partner.example")) },
    Form { hello: "HELO corp.example", ..from_ours(b"<r@partner.example>", External("r@partner.example")) },
];

/// What somebody may do on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum May {
    /// Write to us.
    WriteToUs,
    /// Relay, as anybody.
    Relay,
    /// Relay, as our own domain.
    RelayAsUs,
    /// Nothing at all, and this is said to `MAIL`.
    Nothing(&'static str),
}

/// The oracle: what must be said to `MAIL`, and then to `RCPT`. `None`: the letter is taken.
fn oracle(may: May, form: &Form, auth_is_offered: bool) -> (Option<&'static str>, Option<&'static str>) {
    const UNABLE: &str = "550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain";
    let claims = form.mail.windows(5).any(|five| five == b"AUTH=");
    let mail = match may {
        _ if form.sender == Sender::Nothing => Some("501 5.1.7"),
        // A parameter of a keyword that was not offered.
        _ if claims && !auth_is_offered => Some("555 5.5.4"),
        May::Nothing(told) => Some(told),
        May::RelayAsUs if form.sender != Sender::Ours => Some("550 5.7.60 SMTP; Client does not have permissions"),
        May::WriteToUs | May::Relay | May::RelayAsUs => None,
    };
    let relays = matches!(may, May::Relay | May::RelayAsUs);
    let rcpt = match form.is {
        Nothing => Some("50"),
        Parameter => Some("555 5.5.4"),
        Ours(_) => None,
        External(_) | Routed(_) if relays => None,
        External(_) | Routed(_) => Some(UNABLE),
    };
    (mail, rcpt)
}

/// One column of the matrix: an open session, and what it may do.
struct Column {
    name: &'static str,
    may: May,
    wire: Wire,
    auth_is_offered: bool,
}

impl Column {
    /// Says every form. Answers the subjects of the letters that were taken, with the recipient each is for, and what
    /// was not as the oracle has it.
    fn run(mut self) -> (BTreeMap<String, &'static str>, Vec<String>) {
        let (mut taken, mut wrong) = (BTreeMap::new(), Vec::new());
        for (number, form) in FORMS.iter().enumerate() {
            let subject = format!("matrix {} {number}", self.name);
            match self.say(form, &subject) {
                Ok(Some(recipient)) => drop(taken.insert(subject, recipient)),
                Ok(None) => {}
                Err(error) => {
                    let (mail, rcpt) = (String::from_utf8_lossy(form.mail), String::from_utf8_lossy(form.rcpt));
                    wrong.push(format!("{}: MAIL FROM:{mail} RCPT TO:{rcpt}: {error}", self.name));
                }
            }
        }
        (taken, wrong)
    }

    fn say(&mut self, form: &Form, subject: &str) -> Result<Option<&'static str>> {
        let offered = self.auth_is_offered && form.hello.starts_with("EHLO");
        let (mail, rcpt) = oracle(self.may, form, offered);
        self.wire.expect_to(form.hello, "250")?;
        self.wire.send([b"MAIL FROM:", form.mail, b"\r\n"].concat())?;
        let told = self.wire.expect(mail.unwrap_or("250 2.1.0"))?;
        if mail.is_some() {
            return is_a_refusal(&told).map(|()| None);
        }
        self.wire.send([b"RCPT TO:", form.rcpt, b"\r\n"].concat())?;
        let told = self.wire.expect(rcpt.unwrap_or("250 2.1.5"))?;
        if rcpt.is_some() {
            return is_a_refusal(&told).map(|()| None);
        }
        self.wire.expect_to("DATA", "354")?;
        self.wire.send(format!("From: <a@corp.example>\r\nSubject: {subject}\r\n\r\nx\r\n.\r\n"))?;
        self.wire.expect("250 2.6.0")?;
        match form.is {
            Ours(recipient) | External(recipient) | Routed(recipient) => Ok(Some(recipient)),
            Nothing | Parameter => Ok(None),
        }
    }
}

/// Every refusal ends with the session's id.
fn is_a_refusal(told: &str) -> Result<()> {
    let id = told.rsplit_once(" [").and_then(|(_, id)| id.strip_suffix(']'));
    if id.is_some_and(|id| id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit())) {
        return Ok(());
    }
    Err(std::io::Error::other(format!("no session id at the end of {told:?}")))
}

struct Scene<'a> {
    cluster: &'a TestCluster,
    trust: Trust,
}

impl Scene<'_> {
    fn open(&self, source: &str, service: u16) -> Wire {
        let target: SocketAddr = match service {
            25 => self.cluster.smtp,
            587 => self.cluster.submission,
            _ => self.cluster.submissions,
        };
        let mut wire = match service {
            465 => Wire::implicit(source, target, &self.trust).unwrap(),
            _ => Wire::greeted(source, target).unwrap(),
        };
        wire.expect_to("EHLO device.example", "250").unwrap();
        if service == 587 {
            wire = wire.starttls(&self.trust).unwrap();
            wire.expect_to("EHLO device.example", "250").unwrap();
        }
        wire
    }

    fn login(&self, wire: &mut Wire, user: &str, password: &str, expected: &str) {
        let told = wire.auth_plain(user, password).unwrap();
        assert!(told.starts_with(expected), "{told}");
    }

    /// Every column that is open before anything is revoked.
    fn columns(&self) -> Vec<Column> {
        const ANONYMOUS: May = May::Nothing("530 5.7.57 SMTP; Client was not authenticated to send anonymous mail");
        let (user, password) = (self.cluster.user.as_str(), self.cluster.password.as_str());
        let column = |name, may, wire, auth_is_offered| Column { name, may, wire, auth_is_offered };
        let mut columns = vec![
            column("stranger 25", May::WriteToUs, self.open("127.0.9.1", 25), false),
            column("stranger 587", ANONYMOUS, self.open("127.0.9.2", 587), true),
            column("stranger 465", ANONYMOUS, self.open("127.0.9.3", 465), true),
            column("listed 25", May::Relay, self.open("127.0.31.1", 25), false),
            // Nothing falls through to another service: what 25 allows, 587 and 465 have never heard of.
            column("listed 587", ANONYMOUS, self.open("127.0.31.2", 587), true),
            column("listed 465", ANONYMOUS, self.open("127.0.31.3", 465), true),
        ];
        let logins = [
            ("credential 25", "127.0.51.1", 25, "failed 25", "127.0.51.2"),
            ("credential 587", "127.0.9.4", 587, "failed 587", "127.0.9.5"),
            ("credential 465", "127.0.9.6", 465, "failed 465", "127.0.9.7"),
        ];
        for (name, source, service, failed, failed_source) in logins {
            let mut wire = self.open(source, service);
            self.login(&mut wire, user, password, "235 2.7.0");
            columns.push(column(name, May::RelayAsUs, wire, true));
            let mut wire = self.open(failed_source, service);
            self.login(&mut wire, user, "wrong", "535 5.7.3");
            let may = if service == 25 { May::WriteToUs } else { ANONYMOUS };
            columns.push(column(failed, may, wire, true));
        }
        columns
    }
}

#[test]
fn a_letter_leaves_only_where_the_oracle_says() {
    let cluster = TestCluster::start();
    let ctl = |line: &str| cluster.ctl.ok(&line.split_ascii_whitespace().collect::<Vec<_>>());
    ctl("connector create keyed --from 127.0.51.0/24 --auth-mechanism tls,basic_auth \
         --permission-groups anonymous_users,exchange_users");
    for connector in ["default", "printers", "keyed", "submission", "submissions"] {
        ctl(&format!(
            "connector set {connector} --max-protocol-errors unlimited --tarpit-interval 0s --auth-tarpit-interval 0s"
        ));
    }
    let made = cluster.ctl.json(&["credential", "create", "leaver@corp.example", "--own-domain", "--generate"]);
    let leaver = made["password"].as_str().unwrap().to_owned();
    ctl("allowlist add printers 127.0.32.1");
    let scene = Scene { cluster: &cluster, trust: cluster.trust() };
    let mut columns = scene.columns();

    // Logged in and listed, and then no more: the connections are open, the rights are gone.
    let mut leavers: Vec<(&str, Wire)> =
        [("revoked 25", "127.0.51.3", 25), ("revoked 587", "127.0.9.8", 587), ("revoked 465", "127.0.9.9", 465)]
            .map(|(name, source, service)| {
                let mut wire = scene.open(source, service);
                scene.login(&mut wire, "leaver@corp.example", &leaver, "235 2.7.0");
                (name, wire)
            })
            .into();
    let mut unlisted = scene.open("127.0.32.1", 25);
    for wire in leavers.iter_mut().map(|(_, wire)| wire).chain([&mut unlisted]) {
        wire.expect_to("MAIL FROM:<a@corp.example>", "250").unwrap();
        wire.expect_to("RCPT TO:<r@partner.example>", "250").unwrap();
        wire.expect_to("RSET", "250").unwrap();
    }
    ctl("credential disable leaver@corp.example --yes --reason gone");
    ctl("allowlist remove printers 127.0.32.1 --yes --reason gone");
    unlisted.expect_to("MAIL FROM:<a@corp.example>", "421 4.3.2").unwrap();
    assert!(unlisted.until_closed(Duration::from_secs(10)).is_some(), "the connection was opened for other rights");
    columns.push(Column {
        name: "revoked entry 25",
        may: May::WriteToUs,
        wire: scene.open("127.0.32.1", 25),
        auth_is_offered: false,
    });
    for (name, wire) in leavers {
        let told = "530 5.7.57 SMTP; Client was not authenticated to send anonymous mail";
        columns.push(Column { name, may: May::Nothing(told), wire, auth_is_offered: true });
    }

    let count = columns.len();
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = columns.into_iter().map(|column| scope.spawn(move || column.run())).collect();
        running.into_iter().map(|column| column.join().unwrap()).collect()
    });
    let wrong: Vec<String> = outcomes.iter().flat_map(|(_, wrong)| wrong.iter().cloned()).collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), FORMS.len() * count, wrong.join("\n"));
    let taken: BTreeMap<String, &str> = outcomes.into_iter().flat_map(|(taken, _)| taken).collect();
    println!("{} forms in {count} columns, {} letters taken", FORMS.len(), taken.len());

    // What was taken arrives at the address that the oracle read, and at no other. A literal is taken by those who
    // relay; whether there is a way to it is delivery's business.
    let due: BTreeSet<&String> = taken.iter().filter(|(_, to)| !to.contains('[')).map(|(subject, _)| subject).collect();
    until(Duration::from_secs(60), "every letter that was taken arrives", || {
        let filed = cluster.filed_by_subject();
        due.iter().all(|subject| filed.contains_key(*subject)).then_some(())
    });
    for (subject, letters) in cluster.filed_by_subject() {
        if !subject.starts_with("matrix ") {
            continue;
        }
        let meant = taken.get(&subject).unwrap_or_else(|| panic!("{subject} was refused and arrived"));
        for letter in letters {
            assert_eq!(letter.to, [meant.to_string()], "{subject}");
        }
    }

    nobody_names_himself(&scene);
}

/// `XCLIENT` and `XFORWARD` are for peers that an administrator listed. From anybody else they change nothing.
fn nobody_names_himself(scene: &Scene<'_>) {
    for target in [scene.cluster.smtp, scene.cluster.nodes[2].smtp] {
        for claim in [
            "XCLIENT ADDR=127.0.31.7",
            "XCLIENT ADDR=127.0.31.7 NAME=printer.example LOGIN=scanner@corp.example",
            "XCLIENT LOGIN=scanner@corp.example",
            "XCLIENT DESTADDR=127.0.0.1 DESTPORT=587 ADDR=127.0.31.7",
            "xclient addr=127.0.31.7",
            "XFORWARD ADDR=127.0.31.7",
            "XFORWARD NAME=printer.example ADDR=127.0.31.7 IDENT=1",
        ] {
            let mut wire = Wire::greeted("127.0.9.10", target).unwrap();
            let offered = wire.expect_to("EHLO device.example", "250").unwrap();
            assert!(!offered.contains("XCLIENT") && !offered.contains("XFORWARD"), "{offered}");
            wire.expect_to(claim, "5").unwrap();
            let hello = wire.expect_to("EHLO device.example", "250").unwrap();
            assert!(hello.contains("Hello [127.0.9.10]"), "{claim} changed who this is: {hello}");
            wire.expect_to("MAIL FROM:<scanner@corp.example>", "250").unwrap();
            wire.expect_to("RCPT TO:<r@partner.example>", "550 5.7.54").unwrap();
        }
    }
}
