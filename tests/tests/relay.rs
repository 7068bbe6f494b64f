//! Clients that nobody here wrote hand letters to the front, as devices do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::process::Command;

use posthouse_tests::{TestCluster, repository};
use serde_json::Value;

struct Client<'a> {
    cluster: &'a TestCluster,
}

impl Client<'_> {
    fn smtplib(&self, target: SocketAddr, source: &str, id: &str, more: &[&str]) -> (u64, String) {
        let output = Command::new("python3")
            .arg(repository().join("tests/clients/send.py"))
            .args(["--to-host", "localhost", "--port", &target.port().to_string(), "--source", source, "--id", id])
            .args(more)
            .output()
            .expect("python3 runs");
        let answer: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("smtplib said nothing: {}", String::from_utf8_lossy(&output.stderr)));
        (answer["code"].as_u64().unwrap(), answer["reply"].as_str().unwrap().to_owned())
    }

    fn swaks(&self, source: &str, id: &str, more: &[&str]) -> (bool, String) {
        let output = Command::new("swaks")
            .args(["--server", "127.0.0.1", "--port", &self.cluster.smtp.port().to_string()])
            .args(["--local-interface", source, "--helo", "printer.example", "--from", "scan@corp.example"])
            .args(["--to", "somebody@partner.example", "--header", &format!("Message-ID: <{id}@client.example>")])
            .args(more)
            .output()
            .expect("swaks runs");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn login(&self) -> [String; 6] {
        let secret = self.cluster.path().join("secret");
        std::fs::write(&secret, &self.cluster.password).unwrap();
        let ca = self.cluster.nodes[0].dir.join("data/ca.crt");
        [
            "--user".to_owned(),
            self.cluster.user.clone(),
            "--password-file".to_owned(),
            secret.display().to_string(),
            "--ca".to_owned(),
            ca.display().to_string(),
        ]
    }
}

/// The trace of a letter, by its Message-ID.
fn trace(cluster: &TestCluster, id: &str) -> Value {
    let traced = cluster.ctl.json(&["message", "trace", "--message-id", &format!("<{id}@client.example>")]);
    let messages = traced["messages"].as_array().expect("messages").clone();
    assert_eq!(messages.len(), 1, "one letter has that Message-ID: {traced}");
    messages[0].clone()
}

#[test]
fn third_party_clients_relay_as_their_address_and_credential_allow() {
    let cluster = TestCluster::start();
    let client = Client { cluster: &cluster };

    // A listed printer: any recipient.
    let (code, reply) = client.smtplib(cluster.smtp, "127.0.31.7", "smtplib-listed", &[]);
    assert_eq!(code, 250, "{reply}");
    assert!(reply.starts_with("2.6.0 <smtplib-listed@client.example> [InternalId="), "{reply}");
    assert!(reply.contains("Hostname=n") && reply.ends_with("Queued mail for delivery"), "{reply}");
    let letter = cluster.letter_with("smtplib-listed@client.example");
    assert!(letter.contains("[127.0.31.7]"), "Received names the device, not the front:\n{letter}");
    assert!(!letter.contains("127.0.0.2"), "the front's own address is not the device's:\n{letter}");
    assert!(letter.contains("\n.a line that begins with a dot"), "dots survive:\n{letter}");
    let traced = trace(&cluster, "smtplib-listed");
    assert_eq!(traced["client_ip"], "127.0.31.7");
    assert_eq!(traced["connector"], "printers");
    posthouse_tests::until(std::time::Duration::from_secs(20), "the trace says delivered", || {
        (trace(&cluster, "smtplib-listed")["status"] == "delivered").then_some(())
    });

    let (ok, dialog) = client.swaks("127.0.31.8", "swaks-listed", &[]);
    assert!(ok, "{dialog}");
    assert!(cluster.letter_with("swaks-listed@client.example").contains("[127.0.31.8]"));

    // A stranger: our domain, and nobody else's.
    let (code, reply) = client.smtplib(cluster.smtp, "127.0.9.9", "smtplib-stranger", &[]);
    assert_eq!(code, 550, "{reply}");
    assert!(reply.starts_with("5.7.54 SMTP; Unable to relay recipient in non-accepted domain"), "{reply}");
    let (ok, dialog) = client.swaks("127.0.9.9", "swaks-stranger", &[]);
    assert!(!ok && dialog.contains("550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain"), "{dialog}");
    let ours = ["--rcpt", "boss@corp.example"];
    assert_eq!(client.smtplib(cluster.smtp, "127.0.9.9", "stranger-to-us", &ours).0, 250);

    // A credential: STARTTLS on 587 and implicit TLS on 465, verified against the cluster's authority.
    let login = client.login();
    let login: Vec<&str> = login.iter().map(String::as_str).collect();
    let (code, reply) =
        client.smtplib(cluster.submission, "127.0.9.9", "starttls", &[&login[..], &["--mode", "starttls"]].concat());
    assert_eq!(code, 250, "{reply}");
    let (code, reply) =
        client.smtplib(cluster.submissions, "127.0.9.9", "implicit", &[&login[..], &["--mode", "implicit"]].concat());
    assert_eq!(code, 250, "{reply}");
    assert!(cluster.letter_with("starttls@client.example").contains("ESMTPSA"));
    cluster.letter_with("implicit@client.example");
    // It may send as its own domain only.
    let foreign = [&login[..], &["--mode", "starttls", "--mail-from", "boss@other.example"]].concat();
    let (code, reply) = client.smtplib(cluster.submission, "127.0.9.9", "foreign", &foreign);
    assert!(code == 550 && reply.starts_with("5.7.60"), "{code} {reply}");

    // A wrong password.
    std::fs::write(cluster.path().join("wrong"), "not the password").unwrap();
    let wrong = cluster.path().join("wrong");
    let mut refused = login.clone();
    refused[3] = wrong.to_str().unwrap();
    refused.extend(["--mode", "starttls"]);
    let (code, reply) = client.smtplib(cluster.submission, "127.0.9.9", "wrong", &refused);
    assert!(code == 535 && reply.starts_with("5.7.3 Authentication unsuccessful"), "{code} {reply}");
    // Without a login nobody submits on 587.
    let ca = [login[4], login[5], "--mode", "starttls"];
    let (code, reply) = client.smtplib(cluster.submission, "127.0.31.7", "anonymous", &ca);
    assert!(code == 530 && reply.starts_with("5.7.57"), "{code} {reply}");

    // The password is nowhere.
    let logs: String = cluster.procs.iter().flatten().map(posthouse_tests::Proc::log_text).collect();
    assert!(!logs.contains(&cluster.password), "the password is in a log");
}
