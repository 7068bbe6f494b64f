//! Logins over the wire: mechanisms, rotation, disabling, client certificates, against real processes by a client whose
//! TLS and HMAC nobody here wrote.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;

use base64::Engine as _;
use posthouse_tests::tls_dialog::{Talk, Waiting};
use posthouse_tests::{TestCluster, repository};
use serde_json::json;

const OK: &str = "235 2.7.0 Authentication successful";
const WRONG: &str = "535 5.7.3 Authentication unsuccessful";

fn plain(user: &str, password: &str) -> String {
    let message = format!("\0{user}\0{password}");
    format!("AUTH PLAIN {}", base64::engine::general_purpose::STANDARD.encode(message))
}

/// A file with a password, for posthousectl.
fn secret(cluster: &TestCluster, password: &str) -> String {
    let path = cluster.path().join(format!("secret-{}", password.len()));
    std::fs::write(&path, password).unwrap();
    path.display().to_string()
}

#[test]
fn passwords_rotate_and_end_on_open_sessions_too() {
    let cluster = TestCluster::start();
    let ctl = &cluster.ctl;
    ctl.ok(&["connector", "set", "submission", "--auth-tarpit-interval", "0s"]);
    let old = cluster.password.clone();
    let made =
        ctl.json(&["credential", "rotate", &cluster.user, "--generate", "--alphabet", "digits", "--length", "24"]);
    let new = made["password"].as_str().expect("shown once").to_owned();
    assert!(new.len() == 24 && new.bytes().all(|byte| byte.is_ascii_digit()), "{new}");
    // Both log in, on whichever node; each is told apart by the cluster.
    for node in &cluster.nodes {
        for password in [&old, &new] {
            let heard = Talk::starttls(node.submission).say(&["EHLO d.example", &plain(&cluster.user, password)]);
            assert!(heard.last().starts_with(OK), "{}: {heard:?}", node.name);
        }
    }
    let shown = ctl.json(&["credential", "show", &cluster.user]);
    assert_eq!(shown["secrets"].as_array().unwrap().len(), 2, "{shown}");
    assert_ne!(shown["secrets"][0]["expires_at"], "", "the old one ends by itself: {shown}");
    let again = ctl.fails(&["credential", "rotate", &cluster.user, "--generate"]);
    assert!(again.0 == 8 && again.1.contains("PH-CRED-007"), "{again:?}");
    let old_file = secret(&cluster, &old);
    assert!(
        ctl.ok(&["credential", "test", &cluster.user, "--password-file", &old_file]).contains("before the rotation")
    );

    // A session that logged in with the old password, held open while the rotation is finished.
    let hold = cluster.path().join("go-on");
    let mail = format!("MAIL FROM:<{}>", cluster.user);
    let wait = format!("@wait {}", hold.display());
    let held = Waiting::start(
        &Talk::starttls(cluster.submission),
        &["EHLO d.example", &plain(&cluster.user, &old), &mail, "RSET", &wait, &mail],
    );
    ctl.ok(&["credential", "rotate", &cluster.user, "--finish"]);
    std::fs::write(&hold, "").unwrap();
    let heard = held.finish();
    assert!(heard.replies[5].starts_with("250 2.1.0"), "before: {heard:?}");
    assert!(heard.last().starts_with("530 5.7.57"), "its password has ended: {heard:?}");
    let heard = Talk::starttls(cluster.submission).say(&["EHLO d.example", &plain(&cluster.user, &old)]);
    assert!(heard.last().starts_with(WRONG), "{heard:?}");
    assert_eq!(ctl.run(&["credential", "test", &cluster.user, "--password-file", &old_file]).status.code(), Some(1));

    // Disabled: the same for an open session with the right password; enabled, it works again.
    let hold = cluster.path().join("go-on-2");
    let wait = format!("@wait {}", hold.display());
    let held = Waiting::start(
        &Talk::starttls(cluster.submission),
        &["EHLO d.example", &plain(&cluster.user, &new), &wait, &mail],
    );
    ctl.ok(&["credential", "disable", &cluster.user]);
    std::fs::write(&hold, "").unwrap();
    assert!(held.finish().last().starts_with("530 5.7.57"));
    let heard = Talk::starttls(cluster.submission).say(&["EHLO d.example", &plain(&cluster.user, &new)]);
    assert!(heard.last().starts_with(WRONG), "a disabled credential looks like a wrong password: {heard:?}");
    ctl.ok(&["credential", "enable", &cluster.user]);
    let heard = Talk::implicit(cluster.submissions).say(&["EHLO d.example", &plain(&cluster.user, &new), &mail]);
    assert!(heard.last().starts_with("250 2.1.0"), "{heard:?}");

    // A foreign sender; and the choice of senders is demanded.
    let heard = Talk::starttls(cluster.submission).say(&[
        "EHLO d.example",
        &plain(&cluster.user, &new),
        "MAIL FROM:<boss@other.example>",
    ]);
    assert!(heard.last().starts_with("550 5.7.60 SMTP; Client does not have permissions"), "{heard:?}");
    assert_eq!(ctl.fails(&["credential", "create", "nobody", "--generate"]).0, 2);

    // Neither password is anywhere in a log.
    let logs: String = cluster.procs.iter().flatten().map(posthouse_tests::Proc::log_text).collect();
    for password in [&old, &new] {
        let encoded = plain(&cluster.user, password);
        assert!(!logs.contains(password.as_str()) && !logs.contains(encoded.split(' ').next_back().unwrap()));
    }
}

#[test]
fn scram_and_client_certificates_log_in_where_the_connector_offers_them() {
    let cluster = TestCluster::start();
    let ctl = &cluster.ctl;
    ctl.ok(&["connector", "set", "submission", "--auth-tarpit-interval", "0s"]);
    let heard = Talk::starttls(cluster.submission).say(&["EHLO d.example"]);
    assert!(heard.last().contains("AUTH LOGIN PLAIN") && !heard.last().contains("SCRAM"), "{heard:?}");
    let mechanisms = "tls,basic_auth,basic_auth_require_tls,scram_sha_256,client_certificate";
    ctl.ok(&["connector", "set", "submission", "--auth-mechanism", mechanisms]);
    let heard = Talk::starttls(cluster.submission).say(&["EHLO d.example"]);
    assert!(heard.last().contains("AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256 LOGIN PLAIN"), "{heard:?}");

    let password = "pencil and paper";
    let file = secret(&cluster, password);
    ctl.ok(&["credential", "create", "erp", "--sender", "erp@corp.example", "--password-file", &file, "--scram"]);
    let say = |line: &str| Talk::starttls(cluster.submission).say(&["EHLO d.example", line]).last().to_owned();
    // The script's words end at a space, so the password here has none.
    ctl.ok(&["credential", "set", "erp", "--password-file", &secret(&cluster, "pencil")]);
    assert!(say("@scram erp pencil").starts_with(OK), "keys are kept for a new password, too");
    assert!(say("@scram erp paper").starts_with(WRONG));
    assert!(say("@scram ghost pencil").starts_with(WRONG), "nobody by that name gets as far");
    assert!(say(&format!("@scram {} {}", cluster.user, cluster.password)).starts_with(WRONG), "no keys were asked for");
    assert!(say("@scram erp pencil y").starts_with(WRONG), "an offer of -PLUS that was taken out on its way");

    // -PLUS, bound to the TLS connection by OpenSSL's own exporter; and with the octets of another connection.
    let plus = |more: &[&str]| {
        let target = cluster.nodes[0].submissions.to_string();
        ctl.ok(&["connector", "set", "submissions", "--auth-mechanism", mechanisms, "--auth-tarpit-interval", "0s"]);
        let output = Command::new("python3")
            .arg(repository().join("tests/clients/scram_plus.py"))
            .args([target.as_str(), "erp", "pencil"])
            .args(more)
            .output()
            .unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let heard = plus(&[]);
    assert!(heard.starts_with(OK), "{heard}");
    let heard = plus(&["spoil"]);
    assert!(heard.starts_with(WRONG), "the proof of another connection: {heard}");

    // Client certificates: an authority of the devices' own, made by OpenSSL.
    let pki = cluster.path().join("pki");
    std::fs::create_dir(&pki).unwrap();
    let script = "set -e
        openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj '/O=Devices/CN=Device CA' -keyout ca.key -out ca.crt
        for name in printer7 stranger; do
          openssl req -newkey rsa:2048 -nodes -subj \"/O=Corp/CN=$name\" -keyout $name.key -out $name.csr
          printf 'subjectAltName=DNS:%s.corp.example\\nextendedKeyUsage=clientAuth\\n' $name > $name.ext
          openssl x509 -req -in $name.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile $name.ext -out $name.crt
        done
        openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj '/O=Corp/CN=printer7' \\
          -addext 'subjectAltName=DNS:printer7.corp.example' -keyout forged.key -out forged.crt";
    let made = Command::new("bash").args(["-c", script]).current_dir(&pki).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let file = |name: &str| pki.join(name).display().to_string();
    ctl.ok(&["tls", "client-ca", "set", "--cert", &file("ca.crt"), "--reason", "printers"]);
    ctl.ok(&[
        "credential",
        "create",
        "printer7",
        "--sender",
        "@corp.example",
        "--certificate",
        "dns:printer7.corp.example",
    ]);
    let with = |name: &str, steps: &[&str]| {
        let cert = Some((file(&format!("{name}.crt")), file(&format!("{name}.key"))));
        Talk { cert, ..Talk::starttls(cluster.submission) }.say(steps)
    };
    let mail = ["EHLO d.example", "MAIL FROM:<scan@corp.example>", "RCPT TO:<a@partner.example>"];
    let heard = with("printer7", &mail);
    assert!(heard.replies[3].contains("EXTERNAL"), "{heard:?}");
    assert!(heard.last().starts_with("250 2.1.5"), "its certificate alone lets it relay: {heard:?}");
    let heard = with("printer7", &["EHLO d.example", "AUTH EXTERNAL =", "MAIL FROM:<boss@other.example>"]);
    assert!(heard.replies[4].starts_with(OK) && heard.last().starts_with("550 5.7.60"), "{heard:?}");
    for stranger in ["stranger", "forged"] {
        let heard = with(stranger, &mail[..2]);
        assert!(!heard.replies[3].contains("EXTERNAL"), "{stranger}: {heard:?}");
        assert!(heard.last().starts_with("530 5.7.57"), "{stranger}: {heard:?}");
    }
    // Revoked is: the credential is disabled.
    ctl.ok(&["credential", "disable", "printer7"]);
    let heard = with("printer7", &mail[..2]);
    assert!(heard.last().starts_with("530 5.7.57"), "{heard:?}");
    // A device with a certificate that nobody knows still logs in with its password.
    let login = plain(&cluster.user, &cluster.password);
    assert!(with("forged", &["EHLO d.example", &login]).last().starts_with(OK));
    assert_eq!(ctl.json(&["credential", "show", "printer7"])["certificates"], json!(["dns:printer7.corp.example"]));
}

#[test]
fn every_exchange_of_the_table_is_answered_over_the_wire() {
    let cluster = TestCluster::start();
    cluster.ctl.ok(&["connector", "set", "submission", "--auth-tarpit-interval", "0s", "--max-protocol-errors", "0"]);
    let good = plain(&cluster.user, &cluster.password);
    // Before TLS nothing is offered and nothing is read.
    let mut bare = posthouse_tests::dialog::Dialog::connect("127.0.0.1".parse().unwrap(), cluster.submission).unwrap();
    bare.reply().unwrap();
    assert!(!bare.command("EHLO d.example").unwrap().contains("AUTH"));
    assert!(bare.command(&good).unwrap().starts_with("504 5.7.4 Unrecognized authentication type"));
    assert!(bare.command("MAIL FROM:<a@corp.example>").unwrap().starts_with("530 5.7.57"), "it was not logged in");

    let rows: [(&str, &str); 14] = [
        ("AUTH PLAIN =", "501 5.5.2"),
        ("AUTH PLAIN not-base64!", "501 5.5.2"),
        ("AUTH PLAIN dXNlcnBhc3M=", "501 5.5.2"),
        ("AUTH PLAIN AHVzZXIAcGFzcwA=", "501 5.5.2"),
        (&format!("AUTH PLAIN {}", "A".repeat(10_000)), "501 5.5.2"),
        ("AUTH PLAIN", "334 "),
        ("*", "501 5.7.0"),
        ("AUTH LOGIN", "334 VXNlcm5hbWU6"),
        ("*", "501 5.7.0"),
        ("AUTH LOGIN Z2hvc3Q=", "334 UGFzc3dvcmQ6"),
        ("d3Jvbmc=", WRONG),
        ("AUTH CRAM-MD5", "504 5.7.4"),
        ("AUTH SCRAM-SHA-256 biwsbj11LHI9eA==", "504 5.7.4"),
        ("NOOP", "250 2.0.0"),
    ];
    let steps: Vec<&str> = std::iter::once("EHLO d.example").chain(rows.iter().map(|(said, _)| *said)).collect();
    let heard = Talk::starttls(cluster.submission).say(&steps);
    for ((said, expected), reply) in rows.iter().zip(&heard.replies[4..]) {
        assert!(reply.starts_with(expected), "{}: {reply}", &said[..said.len().min(40)]);
    }
    let heard = Talk::starttls(cluster.submission).say(&["EHLO d.example", &good, &good, "RSET", &good]);
    assert!(heard.replies[4].starts_with(OK) && heard.replies[5].starts_with("503 5.5.1"), "{heard:?}");
    assert!(heard.last().starts_with("503 5.5.1"));
    let wrong = plain(&cluster.user, "wrong");
    let ghost = plain("ghost", "wrong");
    let text = |line: &str| {
        let heard = Talk::starttls(cluster.submission).say(&["EHLO d.example", line]);
        heard.last().split(" [").next().unwrap().to_owned()
    };
    assert_eq!(text(&wrong), text(&ghost), "the words tell nothing about the user");
    // Three failures end the session, whatever they were.
    let heard = Talk::starttls(cluster.submission).say(&["EHLO d.example", &wrong, &ghost, &wrong]);
    assert!(heard.last().starts_with(WRONG), "{heard:?}");
    let heard = Talk::starttls(cluster.submission).say(&["EHLO d.example", &wrong, &ghost, &wrong, "NOOP"]);
    assert!(heard.last().starts_with("421 4.7.0 Too many errors"), "{heard:?}");
}
