//! Certificates and handshakes over the wire: import, selection, renewal under an open session, old devices, and the
//! tricks that are played with STARTTLS and close_notify (hostile.md 16).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use posthouse_tests::tls_dialog::{Talk, Waiting};
use posthouse_tests::{TestCluster, http_get, until};

/// A self-signed certificate with its key, made by OpenSSL. Answers the files and the certificate's SHA-256.
fn certificate(cluster: &TestCluster, file: &str, name: &str, days: u32) -> (String, String, String) {
    let dir = cluster.path();
    let script = format!(
        "set -e
         openssl req -x509 -newkey rsa:2048 -nodes -days {days} -subj '/C=DE/O=Corp, Inc./CN={name}' \
           -addext 'subjectAltName=DNS:{name}' -keyout {file}.key -out {file}.crt
         openssl x509 -in {file}.crt -outform DER | sha256sum | cut -d' ' -f1"
    );
    let made = Command::new("bash").args(["-c", &script]).current_dir(dir).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let path = |kind: &str| dir.join(format!("{file}.{kind}")).display().to_string();
    (path("crt"), path("key"), String::from_utf8_lossy(&made.stdout).trim().to_owned())
}

fn shown(target: SocketAddr, name: &str) -> String {
    let talk = Talk { name: Some(name.to_owned()), ..Talk::starttls(target) };
    talk.say(&["EHLO d.example"]).sha256.expect("a handshake")
}

#[test]
fn certificates_are_imported_chosen_renewed_and_deleted() {
    let cluster = TestCluster::start();
    let ctl = &cluster.ctl;
    let (cert, key, first) = certificate(&cluster, "first", "smtp.corp.example", 10);
    let (_, other_key, _) = certificate(&cluster, "other", "other.example", 400);
    let refused = ctl.fails(&["tls", "import", "smtp", "--cert", &cert, "--key", &other_key]);
    assert!(refused.0 == 8 && refused.1.contains("PH-TLS-003"), "another certificate's key: {refused:?}");
    ctl.ok(&["tls", "import", "smtp", "--cert", &cert, "--key", &key]);

    // By SNI on every node, without naming it; the default for everybody else.
    let default = shown(cluster.submission, "localhost");
    for node in &cluster.nodes {
        assert_eq!(shown(node.submission, "smtp.corp.example"), first, "{}", node.name);
        assert_eq!(shown(node.submission, "localhost"), default, "{}", node.name);
    }
    // By Exchange's name, its attributes in another order and spelling.
    let exchange = "<I>CN=smtp.corp.example, O=\"Corp, Inc.\", C=DE<S>O=Corp\\, Inc.,C=de, CN=SMTP.corp.example";
    ctl.ok(&["connector", "set", "submission", "--tls-certificate-name", exchange]);
    assert_eq!(shown(cluster.submission, "localhost"), first);
    let listed = ctl.json(&["tls", "show", "smtp"]);
    assert_eq!(listed["connectors"], serde_json::json!(["submission"]), "{listed}");
    let refused = ctl.fails(&["tls", "delete", "smtp"]);
    assert!(refused.0 == 1 && refused.1.contains("PH-TLS-004"), "{refused:?}");

    // It ends in ten days: the status says so, and the metric when.
    let status = ctl.json(&["cluster", "status"]);
    let said = status["warnings"].to_string();
    assert!(said.contains("certificate \\\"smtp\\\" expires in 9 days, soon"), "{said}");
    let (_, metrics) = http_get(cluster.nodes[1].http, "/metrics");
    let line =
        metrics.lines().find(|line| line.starts_with("posthouse_certificate_expiry_timestamp_seconds{name=\"smtp\"}"));
    let at: f64 = line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("the metric");
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    assert!((at - now - 10.0 * 86_400.0).abs() < 3600.0, "{at}");

    // Renewed under an open session: that one goes on with what it has, the next one gets the new certificate.
    let hold = cluster.path().join("renewed");
    let wait = format!("@wait {}", hold.display());
    let login = {
        use base64::Engine as _;
        let message = format!("\0{}\0{}", cluster.user, cluster.password);
        format!("AUTH PLAIN {}", base64::engine::general_purpose::STANDARD.encode(message))
    };
    let mail = format!("MAIL FROM:<{}>", cluster.user);
    let held = Waiting::start(
        &Talk::starttls(cluster.submission),
        &[
            "EHLO d.example",
            &login,
            &wait,
            &mail,
            "RCPT TO:<a@partner.example>",
            "DATA",
            "Subject: renewed\r\n\r\nx\r\n.",
        ],
    );
    let (cert, key, second) = certificate(&cluster, "second", "smtp.corp.example", 400);
    ctl.ok(&["tls", "import", "smtp", "--cert", &cert, "--key", &key]);
    assert_eq!(shown(cluster.submission, "localhost"), second);
    std::fs::write(&hold, "").unwrap();
    let heard = held.finish();
    assert_eq!(heard.sha256.as_deref(), Some(first.as_str()));
    assert!(heard.last().starts_with("250 2.6.0"), "the open session sends its letter: {heard:?}");
    assert_ne!(first, second);
    let status = ctl.json(&["cluster", "status"]);
    assert!(!status["warnings"].to_string().contains("expires in"), "{status}");

    // What a device sees, from outside.
    let address = cluster.submission.to_string();
    let seen = ctl.json(&["tls", "check", &address, "--name", "smtp.corp.example"]);
    let seen = &seen["endpoints"][0];
    assert_eq!((&seen["name_matches"], &seen["trusted_by"]), (&true.into(), &"nobody".into()), "{seen}");
    assert!(seen["versions"].as_array().unwrap().iter().all(|version| version["offered"] == true), "{seen}");
    let (code, _) = ctl.fails(&["tls", "check", &address, "--name", "wrong.example"]);
    assert_eq!(code, 1);
    let submissions = cluster.submissions.to_string();
    let seen = ctl.json(&["tls", "check", &submissions, "--implicit", "--name", "localhost"]);
    assert_eq!(seen["endpoints"][0]["trusted_by"], "cluster", "{seen}");
    assert!(ctl.run(&["tls", "check", &submissions, "--implicit", "--name", "localhost"]).status.success());
    assert_eq!(ctl.json(&["tls", "check"])["endpoints"].as_array().unwrap().len(), 9, "every socket of three nodes");

    // Once no connector needs it, it can go; its key is nowhere in clear.
    ctl.ok(&["connector", "set", "submission", "--tls-certificate-name", ""]);
    ctl.ok(&["tls", "delete", "smtp"]);
    assert_eq!(shown(cluster.submission, "smtp.corp.example"), default);
    let logs: String = cluster.procs.iter().flatten().map(posthouse_tests::Proc::log_text).collect();
    assert!(!logs.contains("PRIVATE KEY"));
}

/// A ClientHello of a device that knows nothing newer than `version`.
fn old_hello(version: [u8; 2]) -> Vec<u8> {
    let mut body = version.to_vec();
    body.extend([0x5a; 32]);
    body.extend([0, 0, 4, 0, 0x2f, 0, 0x35, 1, 0]);
    let mut message = vec![1, 0, 0, u8::try_from(body.len()).unwrap()];
    message.extend(body);
    let mut record = vec![22, 3, 1, 0, u8::try_from(message.len()).unwrap()];
    record.extend(message);
    record
}

/// Connects from `source`, says `lines` one by one, then `octets`, and reads until the end.
fn raw(source: &str, target: SocketAddr, lines: &[&str], octets: &[u8]) -> Vec<u8> {
    let mut dialog = posthouse_tests::dialog::Dialog::connect(source.parse().unwrap(), target).unwrap();
    if !lines.is_empty() {
        dialog.reply().unwrap();
    }
    for line in lines {
        dialog.command(line).unwrap();
    }
    dialog.send(octets).unwrap();
    let mut rest = Vec::new();
    let _ = dialog.stream.read_to_end(&mut rest);
    rest
}

#[test]
fn devices_that_are_too_old_are_listed_over_all_nodes() {
    let cluster = TestCluster::start();
    let ctl = &cluster.ctl;
    assert!(ctl.run(&["tls", "check", "--weak-clients"]).status.success(), "nobody yet");
    raw("127.0.50.1", cluster.nodes[0].submissions, &[], &old_hello([3, 1]));
    raw("127.0.50.2", cluster.nodes[1].submission, &["EHLO fax.example", "STARTTLS"], &old_hello([3, 0]));
    raw("127.0.50.1", cluster.nodes[2].submissions, &[], &old_hello([3, 2]));
    // Through the front it is the device's address that is remembered.
    raw("127.0.50.3", cluster.submission, &["EHLO fax.example", "STARTTLS"], &old_hello([3, 1]));
    // A client that is not too old, but not TLS either.
    raw("127.0.50.4", cluster.nodes[0].submissions, &[], b"EHLO printer.example\r\n");
    let seen = until(Duration::from_secs(20), "four weak handshakes are listed", || {
        let seen = ctl.json(&["tls", "check", "--weak-clients"]);
        (seen["handshakes"].as_array()?.len() == 4).then_some(seen)
    });
    let rows: Vec<(&str, &str, u64, &str)> = seen["handshakes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            let text = |field: &str| row[field].as_str().unwrap();
            (text("source"), row["offered"][0].as_str().unwrap(), row["port"].as_u64().unwrap(), text("connector"))
        })
        .collect();
    assert!(rows.contains(&("127.0.50.1", "TLS 1.0", 465, "submissions")), "{rows:?}");
    assert!(rows.contains(&("127.0.50.1", "TLS 1.1", 465, "submissions")), "{rows:?}");
    assert!(rows.contains(&("127.0.50.2", "SSL 3.0", 587, "submission")), "{rows:?}");
    assert!(rows.contains(&("127.0.50.3", "TLS 1.0", 587, "submission")), "{rows:?}");
    assert_eq!(ctl.run(&["tls", "check", "--weak-clients"]).status.code(), Some(1));
    let all = ctl.json(&["tls", "check", "--failed"]);
    assert!(all["handshakes"].to_string().contains("127.0.50.4"), "{all}");
    // Addresses that shook hands are in neither list.
    Talk { source: Some("127.0.50.9".into()), ..Talk::starttls(cluster.submission) }.say(&["NOOP"]);
    assert!(!ctl.json(&["tls", "check", "--failed"])["handshakes"].to_string().contains("127.0.50.9"));
}

#[test]
fn tls_cannot_be_played_with() {
    let cluster = TestCluster::start_with("[proxy_protocol]\ntrusted = [\"127.0.60.0/24\"]\n");
    let node = &cluster.nodes[0];

    // A ClientHello in records of seven octets, and byte by byte.
    for talk in [
        Talk { fragment: Some(7), ..Talk::implicit(node.submissions) },
        Talk { split: Some(1), ..Talk::implicit(node.submissions) },
        Talk { fragment: Some(1), split: Some(3), ..Talk::starttls(node.submission) },
    ] {
        let heard = talk.say(&["EHLO d.example"]);
        assert!(heard.last().contains("250 "), "{talk:?}: {heard:?}");
    }

    // A balancer's PROXY header and the device's ClientHello in one segment on 465.
    let header = "PROXY TCP4 192.0.2.77 127.0.0.1 41000 465\r\n";
    let hex: String = header.bytes().map(|byte| format!("{byte:02x}")).collect();
    let talk = Talk { source: Some("127.0.60.5".into()), prefix: Some(hex), ..Talk::implicit(node.submissions) };
    let heard = talk.say(&["EHLO d.example"]);
    assert!(heard.last().contains("Hello [192.0.2.77]"), "{heard:?}");

    // STARTTLS: a command behind it in the same write, a parameter, and twice.
    let starttls = |octets: &[u8]| {
        let mut stream = TcpStream::connect(node.submission).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(b"EHLO d.example\r\n").unwrap();
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&buffer).contains("250 ") {
            let count = stream.read(&mut buffer).unwrap();
            assert!(count > 0);
        }
        stream.write_all(octets).unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        String::from_utf8_lossy(&rest).into_owned()
    };
    let heard = starttls(b"STARTTLS\r\nEHLO injected.example\r\n");
    assert!(heard.starts_with("554 5.5.0") && !heard.contains("220") && !heard.contains("injected"), "{heard}");
    let heard = starttls(b"STARTTLS now\r\nQUIT\r\n");
    assert!(heard.starts_with("501 5.5.4"), "{heard}");
    // Plaintext where a ClientHello belongs: nothing of it is a command, and the connection ends.
    let heard =
        raw("127.0.0.1", node.submission, &["EHLO d.example", "STARTTLS"], b"MAIL FROM:<a@corp.example>\r\nNOOP\r\n");
    assert!(!heard.windows(3).any(|window| window == b"250" || window == b"530"), "{heard:?}");
    let heard = Talk::starttls(node.submission).say(&["STARTTLS", "EHLO d.example", "STARTTLS"]);
    assert!(heard.replies[3].starts_with("503 5.5.1") && heard.last().starts_with("503 5.5.1"), "{heard:?}");
    assert!(!heard.replies[4].contains("STARTTLS") && heard.replies[4].contains("AUTH"), "{heard:?}");
    // The name from before TLS is forgotten.
    let heard = Talk::starttls(node.submission).say(&["MAIL FROM:<a@corp.example>"]);
    assert!(heard.last().starts_with("503 5.5.2 Send hello first"), "{heard:?}");

    // close_notify in the middle of mail data, then the end of it in the clear: no letter.
    let talk = Talk { source: Some("127.0.31.7".into()), ..Talk::starttls(node.smtp) };
    let heard = talk.say(&[
        "EHLO printer.example",
        "MAIL FROM:<scan@corp.example>",
        "RCPT TO:<a@partner.example>",
        "DATA",
        "@raw 5375626a6563743a20636c6f7365640d0a0d0a68616c660d0a",
        "@close",
    ]);
    assert!(heard.replies[6].starts_with("354"), "{heard:?}");
    assert_eq!(heard.last(), "after close_notify: 0 octets", "{heard:?}");
    let summary = cluster.ctl.json(&["queue", "summary"]);
    assert_eq!(summary["messages"].as_u64(), Some(0), "{summary}");
    let traced = cluster.ctl.json(&["message", "trace", "--client-ip", "127.0.31.7"]);
    assert_eq!(traced["messages"].as_array().map(Vec::len), Some(0), "half a letter is none: {traced}");
}
