//! One letter never becomes two (CVE-2023-51764, -51765, -51766): every sequence that some server takes for the end
//! of mail data, split over two segments or TLS records at every byte, from strangers, listed devices, credentials
//! and through the front, plain and in TLS, as mail data and as chunks. Behind the sequence a whole second transaction
//! waits to be believed.
//!
//! What must hold on each connection: no bare CR or LF is ever accepted, and nothing of the second transaction ever
//! arrives. After mail data the connection ends with the refusal, because such a peer cannot frame its next command
//! either; chunks are framed by their sizes (RFC 3030), so the session goes on, and a dot on its line is text.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Result;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use posthouse_tests::kernel::until_read;
use posthouse_tests::{TestCluster, Trust, Wire, until};

/// The published table, by its published names. What follows each is the second transaction.
const SEQUENCES: &[(&str, &[u8])] = &[
    ("lflf", b"\n.\n"),
    ("crcr", b"\r.\r"),
    ("crlf", b"\r.\n"),
    ("lfcr", b"\n.\r"),
    ("lfcrlf", b"\n.\r\n"),
    ("crlflf", b"\r\n.\n"),
    ("crcrlf", b"\r.\r\n"),
    ("crlfcr", b"\r\n.\r"),
    ("nullbefore", b"\r\n\0.\r\n"),
    ("nullafter", b"\r\n.\0\r\n"),
    ("out-1", b"\r\n.\r\r\n"),
    ("out-2", b"\r\r\n.\r\r\n"),
    ("exim-0900", b"\r\n.\n"),
    ("pipelined", b"\r\n.\r\n"),
];

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Stranger,
    Listed,
    Credential,
    ThroughFront,
}

/// How the letter is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Data,
    Bdat,
}

/// How the letter is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// Two segments, the second beginning at this octet of the sequence.
    At(usize),
    /// Every octet of the sequence in a segment of its own.
    Single,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    number: usize,
    name: &'static str,
    sequence: &'static [u8],
    cut: Cut,
    by: By,
    tls: bool,
    origin: Origin,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for origin in [Origin::Stranger, Origin::Listed, Origin::Credential, Origin::ThroughFront] {
        for (tls, by) in [(false, By::Data), (true, By::Data), (false, By::Bdat), (true, By::Bdat)] {
            for &(name, sequence) in SEQUENCES {
                let cuts = (0..=sequence.len()).map(Cut::At).chain([Cut::Single]);
                for cut in cuts {
                    cases.push(Case { number: cases.len(), name, sequence, cut, by, tls, origin });
                }
            }
        }
    }
    cases
}

impl Case {
    fn outer(&self) -> String {
        format!("outer-{:04}", self.number)
    }

    fn inner(&self) -> String {
        format!("inner-{:04}", self.number)
    }

    fn letter(id: &str) -> String {
        format!("From: <a@corp.example>\r\nSubject: {id}\r\n\r\ntext of {id}")
    }

    /// The second transaction, as a server that was fooled would read it.
    fn second(&self) -> Vec<u8> {
        let letter = format!("{}\r\n", Self::letter(&self.inner()));
        let envelope = "MAIL FROM:<a@corp.example>\r\nRCPT TO:<b@corp.example>\r\n";
        match self.name {
            "exim-0900" => format!("{envelope}BDAT {} LAST\r\n{letter}\r\n.\r\n", letter.len()),
            _ => format!("{envelope}DATA\r\n{letter}.\r\n"),
        }
        .into_bytes()
    }

    /// The pieces, each for a segment of its own.
    fn pieces(&self) -> Vec<Vec<u8>> {
        let (first, second) = (Self::letter(&self.outer()).into_bytes(), self.second());
        match self.cut {
            Cut::At(at) => {
                vec![[&first[..], &self.sequence[..at]].concat(), [&self.sequence[at..], &second[..]].concat()]
            }
            Cut::Single => {
                let (last, before) = self.sequence.split_last().unwrap();
                let single = before.iter().map(|byte| vec![*byte]);
                [first].into_iter().chain(single).chain([[&[*last], &second[..]].concat()]).collect()
            }
        }
    }

    /// What the server must say behind `354`: the letter's fate, and of a correct end also the rest. Then it closes.
    fn expected(&self) -> &'static [&'static str] {
        match self.name {
            "nullbefore" | "nullafter" => &["550 5.6.0 NUL in message"],
            // A correct end: the first letter is whole. Of what was sent without waiting the sender and the recipient
            // are answered (RFC 2920), and mail data before `354` is where it ends.
            "pipelined" => &["250 2.6.0", "250 2.1.0", "250 2.1.5", "554 5.5.0"],
            _ => &["550 5.6.11"],
        }
    }
}

struct Scene {
    node: SocketAddr,
    front: SocketAddr,
    trust: Trust,
    user: String,
    password: String,
}

impl Scene {
    fn open(&self, case: &Case) -> Result<Wire> {
        let (subnet, target) = match case.origin {
            Origin::Stranger => (9, self.node),
            Origin::Listed => (31, self.node),
            Origin::Credential => (51, self.node),
            Origin::ThroughFront => (31, self.front),
        };
        let source = format!("127.0.{subnet}.{}", 1 + case.number % 16);
        let mut wire = Wire::greeted(&source, target)?;
        wire.expect_to("EHLO device.example", "250")?;
        if case.tls {
            wire = wire.starttls(&self.trust)?;
            wire.expect_to("EHLO device.example", "250")?;
        }
        if case.origin == Origin::Credential {
            let told = wire.auth_plain(&self.user, &self.password)?;
            assert!(told.starts_with("235"), "{told}");
        }
        Ok(wire)
    }

    /// Sends every piece as a chunk, the last one as the last, and says `NOOP` and `QUIT`. Answers whether that was
    /// answered as it must be.
    fn play_chunks(&self, case: &Case) -> Result<(Vec<String>, bool)> {
        let mut wire = self.open(case)?;
        wire.expect_to("MAIL FROM:<a@corp.example>", "250")?;
        wire.expect_to("RCPT TO:<b@corp.example>", "250")?;
        let (server, client) = (wire.tcp().peer_addr()?, wire.local_addr());
        let pieces = case.pieces();
        for (index, piece) in pieces.iter().enumerate() {
            if index > 0 {
                until_read(server, client);
            }
            let last = if index + 1 == pieces.len() { " LAST" } else { "" };
            wire.send([format!("BDAT {}{last}\r\n", piece.len()).as_bytes(), piece].concat())?;
        }
        wire.send(b"NOOP\r\nQUIT\r\n")?;
        let said = wire.until_closed(Duration::from_secs(10)).unwrap_or_default();
        let said: Vec<String> = String::from_utf8_lossy(&said).lines().map(str::to_owned).collect();
        let kept = said.iter().filter(|line| line.starts_with("250 2.6.0 <")).count();
        let refused = said.iter().any(|line| line.starts_with("550 5.6."));
        let ends = matches!(said.as_slice(), [.., ok, bye] if ok.starts_with("250 2.0.0") && bye.starts_with("221"));
        let right = if case.name == "pipelined" { (kept, refused) == (1, false) } else { (kept, refused) == (0, true) };
        Ok((said, right && ends))
    }

    /// Plays one case. Answers what was said behind `354`, line by line, and whether the server closed.
    fn play(&self, case: &Case) -> Result<(Vec<String>, bool)> {
        let mut wire = self.open(case)?;
        wire.expect_to("MAIL FROM:<a@corp.example>", "250")?;
        wire.expect_to("RCPT TO:<b@corp.example>", "250")?;
        wire.expect_to("DATA", "354")?;
        let (server, client) = (wire.tcp().peer_addr()?, wire.local_addr());
        let pieces = case.pieces();
        for (index, piece) in pieces.iter().enumerate() {
            if index > 0 {
                until_read(server, client);
            }
            wire.send(piece)?;
        }
        let mut said = Vec::new();
        for _ in case.expected() {
            match wire.reply() {
                Ok(reply) => said.push(reply),
                Err(error) => {
                    said.push(format!("({error})"));
                    break;
                }
            }
        }
        let rest = wire.until_closed(Duration::from_secs(10));
        let closed = rest.is_some();
        said.extend(rest.filter(|rest| !rest.is_empty()).map(|rest| String::from_utf8_lossy(&rest).into_owned()));
        Ok((said, closed))
    }
}

fn is_right(case: &Case, said: &[String], closed: bool) -> bool {
    let expected = case.expected();
    closed && said.len() == expected.len() && said.iter().zip(expected).all(|(said, word)| said.starts_with(word))
}

#[test]
fn one_letter_never_becomes_two() {
    let cluster = TestCluster::start();
    let set_up = "connector create keyed --from 127.0.51.0/24 --auth-mechanism tls,basic_auth \
                  --permission-groups exchange_users";
    cluster.ctl.ok(&set_up.split_ascii_whitespace().collect::<Vec<_>>());
    for connector in ["default", "printers", "keyed"] {
        cluster.ctl.ok(&["connector", "set", connector, "--max-inbound-connection-per-source", "unlimited"]);
    }
    let scene = Scene {
        node: cluster.nodes[0].smtp,
        front: cluster.smtp,
        trust: cluster.trust(),
        user: cluster.user.clone(),
        password: cluster.password.clone(),
    };
    let cases = cases();
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let played = match case.by {
                        By::Data => scene.play(case).map(|(said, closed)| (is_right(case, &said, closed), said)),
                        By::Bdat => scene.play_chunks(case).map(|(said, right)| (right, said)),
                    };
                    match played {
                        Ok((true, _)) => {}
                        outcome => wrong.lock().unwrap().push(format!("{case:?}: {outcome:?}")),
                    }
                }
            });
        }
    });
    println!("{} connections in {:?}", cases.len(), began.elapsed());
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));

    // What was promised arrives, and nothing else does.
    let promised: Vec<String> = cases.iter().filter(|case| case.name == "pipelined").map(Case::outer).collect();
    until(Duration::from_secs(60), "the letters with a correct end arrive", || {
        let filed = cluster.filed_by_subject();
        promised.iter().all(|id| filed.contains_key(id)).then_some(())
    });
    until(Duration::from_secs(20), "nothing is left in the queue", || {
        (cluster.ctl.json(&["queue", "summary"])["messages"] == 0).then_some(())
    });
    let filed = cluster.filed_by_subject();
    for (subject, letters) in &filed {
        assert!(promised.contains(subject), "{subject} was never accepted as a letter of its own");
        assert_eq!(letters.len(), 1, "{subject} became {} letters", letters.len());
        assert!(letters.iter().all(|letter| !letter.has_bare_line_end()), "{subject} has a bare line end");
    }
    // In a chunk the dot and the second transaction are text, and arrive as it.
    for case in cases.iter().filter(|case| case.name == "pipelined" && case.by == By::Bdat) {
        let body = String::from_utf8_lossy(filed[&case.outer()][0].body()).into_owned();
        let text = format!("text of {}\r\n.\r\nMAIL FROM:<a@corp.example>", case.outer());
        assert!(body.replace("\r\n", "\n").contains(&text.replace("\r\n", "\n")), "{case:?}: {body}");
    }
    assert_eq!(filed.len(), promised.len());
}
