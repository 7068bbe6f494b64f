//! The compiled program against a scripted member: what it asks, what it prints, how it exits.
#![allow(clippy::unwrap_used)]

mod fake;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fake::{Authority, Fake, refusal};
use posthouse_proto::v1::{
    AllowlistEntry, AwaitRevisionReply, ClusterStatusReply, Connector, ExplainCandidate, ExplainIpReply,
    FailedHandshake, InitClusterReply, JoinClusterReply, ListAllowlistEntriesReply, ListConnectorsReply,
    ListDomainsReply, ListFailedHandshakesReply, ListFrontsReply, LocalStatusReply, Member, MessageTraceReply,
    PutCredentialReply, QueueChangeReply, QueueSummaryReply, RelayGain, SessionLine, StringList, TestCredentialReply,
    TraceEvent, TracedMessage, UsageScope, WriteReply,
};
use serde_json::{Value, json};
use tonic::Status;

/// One run's end.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    #[track_caller]
    fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error} in {}", self.out))
    }

    #[track_caller]
    fn problem(&self) -> Value {
        serde_json::from_str(&self.err).unwrap_or_else(|error| panic!("{error} in {}", self.err))
    }
}

/// A scripted member behind a socket, and a place for contexts.
struct Bench {
    fake: Fake,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { fake: Fake::default(), dir: tempfile::tempdir().unwrap() };
        bench.fake.serve_unix(&bench.socket());
        bench
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("node.sock")
    }

    /// Runs over the socket.
    fn run(&self, line: &str) -> Ran {
        self.run_with(line, "")
    }

    fn run_with(&self, line: &str, stdin: &str) -> Ran {
        let socket = self.socket();
        let words = ["--socket", socket.to_str().unwrap()].into_iter().chain(line.split_whitespace());
        run(self.dir.path(), &words.collect::<Vec<_>>(), stdin)
    }

    /// Makes every change succeed at revision 41, and two of three nodes confirm, or all.
    fn writes(&self, missing: &[&str]) {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let waited = AwaitRevisionReply { confirmed: names(&["n1", "n2"]), missing: names(missing), elapsed_ms: 12 };
        self.fake.says("put_connector", Ok(written())).says("await_revision", Ok(waited));
    }
}

fn run(dir: &Path, words: &[&str], stdin: &str) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_posthousectl"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("POSTHOUSECTL_")) {
        command.env_remove(name);
    }
    let mut child = command
        .env("POSTHOUSECTL_CONFIG_DIR", dir.join("ctl"))
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A run that reads nothing may be gone before this; then there is nobody to write to.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let done = child.wait_with_output().unwrap();
    Ran {
        code: done.status.code().unwrap(),
        out: String::from_utf8(done.stdout).unwrap(),
        err: String::from_utf8(done.stderr).unwrap(),
    }
}

fn written() -> WriteReply {
    WriteReply { revision: 41, changed: true, warnings: vec!["host bits".into()], ..WriteReply::default() }
}

fn list(values: &[&str]) -> Option<StringList> {
    Some(StringList { values: values.iter().map(|value| (*value).to_owned()).collect() })
}

fn connectors() -> ListConnectorsReply {
    let scanners = Connector {
        name: "scanners".into(),
        enabled: Some(true),
        bindings: list(&["0.0.0.0:25", "[::]:25"]),
        remote_ip_ranges: list(&["10.20.31.0/26"]),
        auth_mechanism: list(&["tls"]),
        permission_groups: list(&["anonymous_users"]),
        rights: list(&[]),
        relay: "internal".into(),
        revision: 9,
        ..Connector::default()
    };
    ListConnectorsReply { connectors: vec![scanners], revision: 40, ..Default::default() }
}

fn cluster(healthy: bool, address: &str) -> ClusterStatusReply {
    ClusterStatusReply {
        cluster: "test".into(),
        leader: healthy.then(|| "n1".to_owned()),
        revision: 40,
        voters: 1,
        healthy,
        answered_by: "n1".into(),
        members: vec![Member {
            name: "n1".into(),
            role: "leader".into(),
            state: "active".into(),
            reachable: true,
            applied: 40,
            digest: "abc".into(),
            version: "0.1.0".into(),
            address: address.into(),
            ready: true,
            voter: true,
            ..Member::default()
        }],
        ..ClusterStatusReply::default()
    }
}

#[test]
fn cluster_status_exits_by_health_and_has_the_agreed_fields() {
    let bench = Bench::new();
    bench.fake.says("cluster_status", Ok(cluster(true, "h:1")));
    let value = bench.run("cluster status -o json").exits(0).json();
    assert_eq!(value["schema"], "posthousectl/cluster-status/v1");
    assert_eq!((&value["leader"], &value["revision"]), (&json!("n1"), &json!(40)));
    let member = &value["members"][0];
    for (field, expected) in [
        ("name", json!("n1")),
        ("role", json!("leader")),
        ("state", json!("active")),
        ("reachable", json!(true)),
        ("applied", json!(40)),
        ("digest", json!("abc")),
        ("version", json!("0.1.0")),
    ] {
        assert_eq!(member[field], expected, "{field}");
    }
    assert!(bench.run("cluster status").exits(0).out.contains("leader n1"));
    assert_eq!(bench.run("cluster status -o name").exits(0).out, "n1\n");

    bench.fake.says("cluster_status", Ok(cluster(false, "h:1")));
    assert_eq!(bench.run("cluster status -o json").exits(1).json()["leader"], Value::Null);
    assert!(bench.run("status").exits(1).out.contains("NOT HEALTHY"));
}

#[test]
fn a_machine_of_no_cluster_says_what_to_do_first() {
    let bench = Bench::new();
    let local = LocalStatusReply {
        kind: "node".into(),
        name: "n9".into(),
        state: "uninitialised".into(),
        next_step: "posthousectl cluster init".into(),
        ..LocalStatusReply::default()
    };
    bench.fake.says("local_status", Ok(local));
    let ran = bench.run("status").exits(1);
    assert!(ran.out.contains("n9") && ran.out.contains("Next   posthousectl cluster init"), "{}", ran.out);
}

#[test]
fn connector_list_flattens_its_lists() {
    let bench = Bench::new();
    bench.fake.says("list_connectors", Ok(connectors()));
    let value = bench.run("connector list -o json").exits(0).json();
    let connector = &value["connectors"][0];
    assert_eq!(connector["bindings"], json!(["0.0.0.0:25", "[::]:25"]));
    assert_eq!(connector["remote_ip_ranges"], json!(["10.20.31.0/26"]));
    assert_eq!(connector["enabled"], json!(true));
    let table = bench.run("connector list --no-headers").exits(0).out;
    assert_eq!(table, "scanners  :25  10.20.31.0/26  internal  -  optional  0  never  enabled\n");
    let line = bench.run("connector list -o jsonl").exits(0).out;
    assert_eq!(serde_json::from_str::<Value>(line.trim_end()).unwrap()["name"], "scanners");
}

#[test]
fn an_unknown_name_is_not_found_and_the_nearest_is_named() {
    let bench = Bench::new();
    bench.fake.says("list_connectors", Ok(connectors()));
    let problem = bench.run("connector show scaners -o json").exits(3).problem();
    assert_eq!(problem["code"], "PH-CONN-001");
    assert!(problem["fix"].as_str().unwrap().contains("did you mean \"scanners\"?"), "{problem}");

    bench.fake.says("delete_connector", Err::<WriteReply, _>(refusal("PH-CONN-001", 3)));
    let ran = bench.run("connector delete scaners --yes").exits(3);
    assert!(ran.err.contains("did you mean \"scanners\"?"), "{}", ran.err);
}

#[test]
fn a_change_says_its_revision_and_waits_for_every_node() {
    let bench = Bench::new();
    bench.writes(&[]);
    let ran = bench.run("connector create x --from 10.0.0.1 --relay external --bind 25 --reason because").exits(0);
    assert_eq!(ran.out, "connector \"x\" created   revision 41   on 2/2 nodes in 12 ms\n");
    assert_eq!(ran.err, "warning  host bits\n");
    let request = &bench.fake.asked("put_connector")[0];
    assert_eq!(request["create"], json!(true));
    assert_eq!(request["connector"]["rights"]["values"], json!(["anonymous:accept_any_recipient"]));
    assert_eq!(request["connector"]["bindings"]["values"], json!(["0.0.0.0:25", "[::]:25"]));
    assert_eq!(request["options"]["reason"], json!("because"));
    let waited = &bench.fake.asked("await_revision")[0];
    assert_eq!((&waited["revision"], &waited["timeout_ms"]), (&json!(41), &json!(30_000)));

    let value = bench.run("connector create x --from 10.0.0.1 -o json --wait=5s").exits(0).json();
    assert_eq!((&value["revision"], &value["changed"]), (&json!(41), &json!(true)));
    assert_eq!((&value["confirmed"], &value["missing"]), (&json!(["n1", "n2"]), &json!([])));
    assert_eq!(value["warnings"], json!(["host bits"]));
    assert_eq!(bench.fake.asked("await_revision")[1]["timeout_ms"], json!(5000));

    bench.run("connector create x --from 10.0.0.1 --no-wait").exits(0);
    assert_eq!(bench.fake.asked("await_revision").len(), 2);
}

#[test]
fn nodes_that_have_not_confirmed_are_named_and_the_change_is_committed() {
    let bench = Bench::new();
    bench.writes(&["n3"]);
    let ran = bench.run("connector create x --from 10.0.0.1").exits(7);
    assert!(ran.out.contains("revision 41   on 2/3 nodes"), "{}", ran.out);
    assert!(ran.err.contains("committed") && ran.err.contains("n3"), "{}", ran.err);
    let ran = bench.run("connector create x --from 10.0.0.1 -o json").exits(7);
    assert_eq!(ran.json()["missing"], json!(["n3"]));
    assert_eq!(ran.problem()["code"], "PH-CTL-006");
}

#[test]
fn a_dry_run_waits_for_nobody() {
    let bench = Bench::new();
    bench.fake.says("put_connector", Ok(WriteReply { dry_run: true, ..written() }));
    let ran = bench.run("connector create x --from 10.0.0.1 --dry-run").exits(0);
    assert!(ran.out.contains("would be created"), "{}", ran.out);
    assert!(bench.fake.asked("await_revision").is_empty());
    assert_eq!(bench.fake.asked("put_connector")[0]["options"]["dry_run"], json!(true));
}

#[test]
fn refusals_keep_their_exit_codes() {
    let bench = Bench::new();
    for exit in [1, 3, 4, 6, 8, 9] {
        bench.fake.says("put_connector", Err::<WriteReply, _>(refusal("PH-CONN-003", exit)));
        let ran = bench.run("connector set x --max-size 5MB").exits(exit.try_into().unwrap());
        assert_eq!(ran.err, "error  PH-CONN-003  what\nWhy    why\nFix    fix\n");
    }
    bench.fake.says("put_connector", Err::<WriteReply, _>(Status::invalid_argument("no details")));
    bench.run("connector set x --max-size 5MB").exits(8);
}

#[test]
fn a_shortcut_on_an_existing_connector_holds_for_the_revision_that_was_read() {
    let bench = Bench::new();
    bench.writes(&[]);
    bench.fake.says("list_connectors", Ok(connectors()));
    bench.run("connector set scanners --relay external").exits(0);
    let request = &bench.fake.asked("put_connector")[0];
    assert_eq!(request["options"]["if_revision"], json!(9));
    assert_eq!(request["connector"]["permission_groups"]["values"], json!(["anonymous_users"]));
    assert_eq!(request["connector"]["remote_ip_ranges"], Value::Null);
}

#[test]
fn no_endpoint_is_exit_five() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nobody.sock");
    let ran = run(dir.path(), &["--socket", socket.to_str().unwrap(), "connector", "list", "-o", "json"], "").exits(5);
    assert_eq!((&ran.problem()["code"], &ran.problem()["retryable"]), (&json!("PH-CTL-002"), &json!(true)));
}

#[test]
fn a_change_whose_connection_broke_may_have_been_made() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("breaks.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        for mut taken in listener.incoming().flatten() {
            // The greeting of HTTP/2 and what comes with it, and then no more.
            let _ = std::io::Read::read(&mut taken, &mut [0; 256]);
        }
    });
    let ran = run(dir.path(), &["--socket", socket.to_str().unwrap(), "domain", "add", "c.example"], "").exits(7);
    assert!(ran.err.contains("may still be made") && ran.err.contains("history list"), "{}", ran.err);
    run(dir.path(), &["--socket", socket.to_str().unwrap(), "domain", "list"], "").exits(5);
}

#[test]
fn silence_ends_with_the_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("silent.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let words = ["--timeout", "300ms", "--socket", socket.to_str().unwrap()];
    for command in [["domain", "list", ""], ["domain", "add", "c.example"]] {
        let line: Vec<&str> = words.iter().chain(&command).copied().filter(|word| !word.is_empty()).collect();
        run(dir.path(), &line, "").exits(7);
    }
}

#[test]
fn explain_ip_exits_by_verdict() {
    let bench = Bench::new();
    let mut reply = ExplainIpReply {
        connector: "scanners".into(),
        verdict: "accept".into(),
        reply: "250 2.1.5 Recipient OK".into(),
        candidates: vec![ExplainCandidate {
            connector: "scanners".into(),
            range: "10.20.31.0/26".into(),
            result: "wins".into(),
            ..ExplainCandidate::default()
        }],
        ..ExplainIpReply::default()
    };
    bench.fake.says("explain_ip", Ok(reply.clone()));
    let line = "explain ip 10.20.31.7 --port 25 --from s@c.example --to a@p.example -o json";
    let value = bench.run(line).exits(0).json();
    assert_eq!((&value["connector"], &value["verdict"]), (&json!("scanners"), &json!("accept")));
    assert_eq!(value["candidates"][0]["result"], "wins");
    let request = &bench.fake.asked("explain_ip")[0];
    assert_eq!((&request["sender"], &request["recipients"]), (&json!("s@c.example"), &json!(["a@p.example"])));
    reply.verdict = "reject".into();
    bench.fake.says("explain_ip", Ok(reply));
    bench.run(line).exits(1);
    bench.run("explain ip 10.20.31.7").exits(1);
    bench.run("explain ip 10.20.31.777").exits(2);
}

#[test]
fn error_codes_are_explained_without_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    assert!(run(dir.path(), &["explain", "ph-allow-007"], "").exits(0).out.starts_with("PH-ALLOW-007"));
    run(dir.path(), &["explain", "PH-ALLOW-999"], "").exits(3);
}

#[test]
fn losing_mail_asks_first() {
    let bench = Bench::new();
    bench.fake.says("queue_delete", Ok(QueueChangeReply { changed: 2, ..QueueChangeReply::default() }));
    let ran = bench.run("queue delete --id 01ABC").exits(2);
    assert!(ran.err.contains("--yes"), "{}", ran.err);
    bench.run("queue delete --yes").exits(2);
    assert!(bench.fake.asked("queue_delete").is_empty());
    assert_eq!(bench.run("queue delete --id 01ABC -y").exits(0).out, "2 letters deleted\n");
    let gain = RelayGain {
        range: "10.1.0.0/16".into(),
        addresses: "65536".into(),
        before: "carve".into(),
        after: "wide".into(),
    };
    bench.fake.says("delete_connector", Ok(WriteReply { dry_run: true, gains: vec![gain], ..written() }));
    let ran = bench.run("connector delete scanners").exits(2);
    assert!(ran.err.contains("10.1.0.0/16") && ran.err.contains("may relay then"), "{}", ran.err);
    let asked = bench.fake.asked("delete_connector");
    assert!(asked.iter().all(|request| request["options"]["dry_run"] == json!(true)), "{asked:?}");
}

#[test]
fn part_of_the_cluster_is_printed_and_exits_five() {
    let bench = Bench::new();
    let mut reply =
        QueueSummaryReply { messages: 3, by_state: [("retry".to_owned(), 3)].into(), ..QueueSummaryReply::default() };
    bench.fake.says("queue_summary", Ok(reply.clone()));
    let value = bench.run("queue summary -o json").exits(0).json();
    assert_eq!((&value["messages"], &value["by_state"]), (&json!(3), &json!({"retry": 3})));
    reply.unreachable = vec!["n3".into()];
    bench.fake.says("queue_summary", Ok(reply));
    let ran = bench.run("queue summary -o json").exits(5);
    assert_eq!(ran.json()["messages"], json!(3));
    assert!(ran.problem()["message"].as_str().unwrap().contains("n3"));
}

#[test]
fn a_trace_without_a_match_ran_all_the_same() {
    let bench = Bench::new();
    bench.fake.says("message_trace", Ok(MessageTraceReply::default()));
    let ran = bench.run("message trace --message-id x -o json").exits(0);
    assert_eq!(ran.json()["messages"], json!([]));
    assert_eq!(ran.err, "no letter matches\n");
    let letter = TracedMessage {
        id: "01ABC".into(),
        client_ip: "127.0.31.7".into(),
        status: "delivered".into(),
        events: vec![TraceEvent { event: "accepted".into(), ..TraceEvent::default() }],
        ..TracedMessage::default()
    };
    bench.fake.says("message_trace", Ok(MessageTraceReply { messages: vec![letter], unreachable: vec![] }));
    let value = bench.run("message trace --since 2h -o json").exits(0).json();
    let message = &value["messages"][0];
    assert_eq!((&message["client_ip"], &message["events"][0]["event"]), (&json!("127.0.31.7"), &json!("accepted")));
    assert_eq!(bench.fake.asked("message_trace")[1]["since_secs"], json!(7200));
}

#[test]
fn a_credential_demands_a_choice_of_senders() {
    let bench = Bench::new();
    let reply = PutCredentialReply { write: Some(written()), generated_password: "Xy7".into() };
    bench.writes(&[]);
    bench.fake.says("put_credential", Ok(reply));
    let ran = bench.run("credential create s@corp.example --generate").exits(2);
    for choice in ["--own-domain", "--sender ADDRESS", "--sender '*'"] {
        assert!(ran.err.contains(choice), "{}", ran.err);
    }
    assert!(bench.fake.asked("put_credential").is_empty());
    let value = bench.run("credential create s@corp.example --own-domain --generate -o json").exits(0).json();
    assert_eq!((&value["password"], &value["revision"]), (&json!("Xy7"), &json!(41)));
    let request = &bench.fake.asked("put_credential")[0];
    assert_eq!(request["credential"]["senders"]["values"], json!(["@corp.example"]));
    assert_eq!((&request["generate"], &request["password"]), (&json!(true), &Value::Null));
}

#[test]
fn a_generated_password_has_the_shape_that_was_asked_for() {
    let bench = Bench::new();
    bench.writes(&[]);
    bench
        .fake
        .says("put_credential", Ok(PutCredentialReply { write: Some(written()), ..PutCredentialReply::default() }));
    bench.run("credential create fax --sender * --generate --length 12 --alphabet digits --scram").exits(0);
    let asked = &bench.fake.asked("put_credential")[0];
    assert_eq!((&asked["generate_length"], &asked["generate_alphabet"]), (&json!(12), &json!("digits")));
    assert_eq!(asked["scram"], json!(true));
    // A shape without a password to make is a mistake.
    bench.run("credential create fax --sender * --length 12 --password-stdin").exits(2);
}

#[test]
fn a_rotation_keeps_the_old_password_as_long_as_it_is_told() {
    let bench = Bench::new();
    bench.writes(&[]);
    bench
        .fake
        .says("put_credential", Ok(PutCredentialReply { write: Some(written()), ..PutCredentialReply::default() }));
    bench.run("credential rotate erp --generate").exits(0);
    bench.run("credential rotate erp --generate --keep-old 2d").exits(0);
    bench.run("credential rotate erp --generate --keep-old forever").exits(0);
    bench.run("credential rotate erp --generate --keep-old 0").exits(0);
    bench.run("credential rotate erp --finish").exits(0);
    bench.run("credential rotate erp --finish --generate").exits(2);
    let asked = bench.fake.asked("put_credential");
    let kept: Vec<&Value> = asked.iter().map(|request| &request["keep_old_secs"]).collect();
    assert_eq!(kept, [&Value::Null, &json!(172_800), &json!(u64::MAX), &json!(0), &Value::Null]);
    assert_eq!((&asked[0]["rotate"], &asked[0]["finish_rotation"]), (&json!(true), &json!(false)));
    assert_eq!((&asked[4]["rotate"], &asked[4]["finish_rotation"]), (&json!(false), &json!(true)));
    assert_eq!(asked[4]["generate"], json!(false));
}

#[test]
fn a_password_is_tested_by_exit_code() {
    let bench = Bench::new();
    let no = TestCredentialReply { ok: false, reason: "credential is disabled".into(), old_password: false };
    bench.fake.says("test_credential", Ok(no));
    let ran = bench.run_with("credential test erp --password-stdin --source 10.0.0.7", "s3cret\n").exits(1);
    assert!(ran.out.contains("credential is disabled"), "{}", ran.out);
    bench.fake.says("test_credential", Ok(TestCredentialReply { ok: true, ..TestCredentialReply::default() }));
    let ran = bench.run_with("credential test erp --password-stdin", "s3cret\n").exits(0);
    assert!(!ran.out.contains("s3cret"));
    let asked = &bench.fake.asked("test_credential")[0];
    assert_eq!((&asked["password"], &asked["source"]), (&json!("s3cret"), &json!("10.0.0.7")));
}

#[test]
fn a_password_comes_from_standard_input_or_a_file() {
    let bench = Bench::new();
    bench.writes(&[]);
    bench
        .fake
        .says("put_credential", Ok(PutCredentialReply { write: Some(written()), ..PutCredentialReply::default() }));
    bench.run_with("credential create u --sender * --password-stdin", "s3cret\n").exits(0);
    let file = bench.dir.path().join("password");
    std::fs::write(&file, "from file\n").unwrap();
    bench.run(&format!("credential rotate u --password-file {}", file.display())).exits(0);
    bench.run("credential rotate u").exits(2);
    let asked = bench.fake.asked("put_credential");
    assert_eq!((&asked[0]["password"], &asked[1]["password"]), (&json!("s3cret"), &json!("from file")));
    assert_eq!(asked[1]["create"], json!(false));
}

#[test]
fn both_spellings_of_a_verb_ask_the_same() {
    let bench = Bench::new();
    bench.writes(&[]);
    bench.fake.says("put_domain", Ok(written())).says("put_route", Ok(written()));
    bench.fake.says("list_domains", Ok(ListDomainsReply::default()));
    bench.run("domain add corp.example --type internal-relay").exits(0);
    bench.run("domain create corp.example --type internal-relay").exits(0);
    let asked = bench.fake.asked("put_domain");
    assert_eq!(asked[0], asked[1]);
    assert_eq!(asked[0]["domain"], json!({"name": "corp.example", "type": "internal_relay", "revision": 0}));
    bench.run("route add * --to 127.0.0.1:2526 --to [::1]:25").exits(0);
    let route = &bench.fake.asked("put_route")[0]["route"];
    assert_eq!((&route["name"], &route["address_spaces"]["values"]), (&json!("default"), &json!(["*"])));
    assert_eq!(route["smart_hosts"]["values"], json!(["127.0.0.1:2526", "[::1]:25"]));
    assert_eq!(bench.run("domain list -o json").exits(0).json()["domains"], json!([]));
}

#[test]
fn joining_says_the_role() {
    let bench = Bench::new();
    let joined = JoinClusterReply { cluster: "test".into(), name: "n2".into(), role: "voter".into(), revision: 7 };
    bench.fake.says("join_cluster", Ok(joined));
    assert_eq!(bench.run("node add --token PHJ1-x").exits(0).out, "n2 joined test as voter   revision 7\n");
    assert_eq!(bench.fake.asked("join_cluster")[0]["token"], "PHJ1-x");
    assert_eq!(bench.run("node join --token PHJ1-x -o json").exits(0).json()["role"], "voter");
}

/// A scripted member over mutual TLS, and the context that `cluster init` makes for it.
struct TlsBench {
    bench: Bench,
    authority: Authority,
    address: String,
}

impl TlsBench {
    fn new() -> Self {
        let (bench, authority) = (Bench::new(), Authority::new());
        let address = bench.fake.serve_tls(&authority, "n1").to_string();
        let (admin_cert_pem, admin_key_pem) = authority.issue(&["admin".to_owned()]);
        let made = InitClusterReply {
            cluster: "test".into(),
            ca_pem: authority.ca_pem(),
            admin_cert_pem,
            admin_key_pem,
            endpoint: address.clone(),
            revision: 1,
            ..InitClusterReply::default()
        };
        bench.fake.says("init_cluster", Ok(made)).says("cluster_status", Ok(cluster(true, &address)));
        bench.fake.says("list_connectors", Ok(connectors()));
        bench.run("cluster init --name test --context t --smtp-name localhost").exits(0);
        Self { bench, authority, address }
    }

    fn run(&self, line: &str) -> Ran {
        run(self.bench.dir.path(), &line.split_whitespace().collect::<Vec<_>>(), "")
    }

    fn contexts(&self) -> PathBuf {
        self.bench.dir.path().join("ctl/contexts.toml")
    }
}

#[test]
fn init_leaves_a_private_context_that_works() {
    let tls = TlsBench::new();
    assert_eq!(std::fs::metadata(tls.contexts()).unwrap().permissions().mode() & 0o777, 0o600);
    let request = &tls.bench.fake.asked("init_cluster")[0];
    assert_eq!((&request["cluster"], &request["smtp_names"]), (&json!("test"), &json!(["localhost"])));
    assert_eq!(tls.run("--context t connector list -o name").exits(0).out, "scanners\n");
    assert_eq!(tls.run("connector list -o name").exits(0).out, "scanners\n");
    let shown = tls.run("context show -o json").exits(0);
    assert_eq!(shown.json()["endpoints"], json!([tls.address]));
    assert!(!shown.out.contains("PRIVATE KEY"));
    tls.run("--context other connector list").exits(3);
}

#[test]
fn init_does_not_overwrite_a_context() {
    let tls = TlsBench::new();
    tls.bench.run("cluster init --name test --context t").exits(6);
    assert_eq!(tls.bench.fake.asked("init_cluster").len(), 1);
}

#[test]
fn a_context_that_others_may_read_is_refused() {
    let tls = TlsBench::new();
    std::fs::set_permissions(tls.contexts(), std::fs::Permissions::from_mode(0o644)).unwrap();
    let ran = tls.run("connector list").exits(8);
    assert!(ran.err.contains("chmod 600"), "{}", ran.err);
}

#[test]
fn endpoints_are_tried_in_turn() {
    let tls = TlsBench::new();
    let line = format!("--endpoint 127.0.0.1:1 --endpoint {} connector list -o name", tls.address);
    assert_eq!(tls.run(&line).exits(0).out, "scanners\n");
    let ran = tls.run("--endpoint 127.0.0.1:1 connector list").exits(5);
    assert!(ran.err.contains("127.0.0.1:1"), "{}", ran.err);
}

#[test]
fn the_members_are_remembered_for_when_the_first_node_is_gone() {
    let tls = TlsBench::new();
    let other = tls.bench.fake.serve_tls(&tls.authority, "n2").to_string();
    let mut status = cluster(true, &tls.address);
    status.members.push(Member { name: "n2".into(), address: other.clone(), ..Member::default() });
    tls.bench.fake.says("cluster_status", Ok(status));
    tls.run("cluster status").exits(0);
    let text = std::fs::read_to_string(tls.contexts()).unwrap();
    assert!(text.contains(&other), "{text}");
    // The first node goes away: its address leads nowhere.
    std::fs::write(tls.contexts(), text.replace(&tls.address, "127.0.0.1:1")).unwrap();
    assert_eq!(tls.run("connector list -o name").exits(0).out, "scanners\n");
}

#[test]
fn another_authority_is_not_believed() {
    let tls = TlsBench::new();
    let impostor = Fake::default();
    impostor.says("list_connectors", Ok(connectors()));
    let address = impostor.serve_tls(&Authority::new(), "n1");
    tls.run(&format!("--endpoint {address} connector list")).exits(5);
    assert!(impostor.asked("list_connectors").is_empty());
}

#[test]
fn a_named_node_must_prove_its_name() {
    let tls = TlsBench::new();
    tls.run("--node n1 connector list").exits(0);
    let ran = tls.run("--node n7 connector list").exits(3);
    assert!(ran.err.contains("n7"), "{}", ran.err);
    // A member that answers at n2's address, but is not n2.
    let mut status = cluster(true, &tls.address);
    status.members.push(Member { name: "n2".into(), address: tls.address.clone(), ..Member::default() });
    tls.bench.fake.says("cluster_status", Ok(status));
    tls.run("--node n2 connector list").exits(5);
}

#[test]
fn a_change_that_met_no_leader_is_tried_on_the_next_endpoint() {
    let tls = TlsBench::new();
    tls.bench.writes(&[]);
    let cut_off = Fake::default();
    cut_off.says("put_connector", Err::<WriteReply, _>(refusal("PH-RAFT-001", 5)));
    let alone = cut_off.serve_tls(&tls.authority, "n3");
    let line = format!("--endpoint {alone} --endpoint {} connector create x --from 10.0.0.1", tls.address);
    tls.run(&line).exits(0);
    assert_eq!(tls.bench.fake.asked("put_connector").len(), 1);
    let ran = tls.run(&format!("--timeout 2s --endpoint {alone} connector create x --from 10.0.0.1")).exits(5);
    assert!(ran.err.contains("PH-RAFT-001"), "{}", ran.err);
    assert!(cut_off.asked("put_connector").len() > 2, "an election was given no time");
}

#[test]
fn a_node_that_is_starting_is_passed_over() {
    let tls = TlsBench::new();
    let starting = Fake::default();
    starting.says("list_connectors", Err::<ListConnectorsReply, _>(refusal("PH-NODE-005", 9)));
    let first = starting.serve_tls(&tls.authority, "n3");
    tls.run(&format!("--endpoint {first} --endpoint {} connector list", tls.address)).exits(0);
    let ran = tls.run(&format!("--endpoint {first} connector list")).exits(9);
    assert!(ran.err.contains("PH-NODE-005"), "{}", ran.err);
}

#[test]
fn a_refused_change_is_not_tried_elsewhere() {
    let tls = TlsBench::new();
    tls.bench.writes(&[]);
    let refuses = Fake::default();
    refuses.says("put_connector", Err::<WriteReply, _>(refusal("PH-RAFT-002", 7)));
    let first = refuses.serve_tls(&tls.authority, "n3");
    let line = format!("--endpoint {first} --endpoint {} connector create x --from 10.0.0.1", tls.address);
    tls.run(&line).exits(7);
    assert!(tls.bench.fake.asked("put_connector").is_empty());
}

#[test]
fn lists_of_nothing_are_their_headings() {
    let bench = Bench::new();
    bench.fake.says("list_fronts", Ok(ListFrontsReply::default()));
    assert!(bench.run("front list").exits(0).out.starts_with("FRONT"));
    assert_eq!(bench.run("front list --no-headers").exits(0).out, "");
}

#[test]
fn what_needs_no_cluster_asks_none() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run(dir.path(), &["version", "-o", "json"], "").exits(0).json()["version"], env!("CARGO_PKG_VERSION"));
    assert!(run(dir.path(), &["completion", "bash"], "").exits(0).out.contains("posthousectl"));
    run(dir.path(), &["conector", "list"], "").exits(2);
    let help = run(dir.path(), &["connector", "create", "--help"], "").exits(0).out;
    assert!(help.starts_with("Examples:"), "{help}");
    for flag in ["--from", "--bind", "--max-message-size", "--tarpit-interval"] {
        assert!(help.contains(flag), "{flag} is missing in\n{help}");
    }
}

#[test]
fn a_certificate_is_imported_from_its_files() {
    let bench = Bench::new();
    bench.writes(&[]);
    bench.fake.says("import_certificate", Ok(written()));
    let (cert, key) = (bench.dir.path().join("cert.pem"), bench.dir.path().join("key.pem"));
    std::fs::write(&cert, "the chain").unwrap();
    let line = format!("tls import smtp --cert {} --key {}", cert.display(), key.display());
    let ran = bench.run(&line).exits(8);
    assert!(ran.err.contains("key.pem cannot be read"), "{}", ran.err);
    std::fs::write(&key, "the key").unwrap();
    let ran = bench.run(&line).exits(0);
    assert!(!ran.out.contains("the key") && ran.out.contains("certificate \"smtp\" imported"), "{}", ran.out);
    let asked = &bench.fake.asked("import_certificate")[0];
    assert_eq!((&asked["chain_pem"], &asked["key_pem"]), (&json!("the chain"), &json!("the key")));
}

#[test]
fn weak_clients_are_an_answer_of_no_and_a_silent_node_is_said() {
    let bench = Bench::new();
    bench.fake.says("list_failed_handshakes", Ok(ListFailedHandshakesReply::default()));
    bench.run("tls check --weak-clients --since 7d").exits(0);
    let asked = &bench.fake.asked("list_failed_handshakes")[0];
    assert_eq!((&asked["since_secs"], &asked["weak_only"]), (&json!(604_800), &json!(true)));
    let handshake = FailedHandshake {
        source: "10.1.0.9".into(),
        port: 465,
        offered: vec!["TLS 1.0".into()],
        weak: true,
        count: 3,
        ..FailedHandshake::default()
    };
    let reply = ListFailedHandshakesReply { handshakes: vec![handshake], unreachable: vec![] };
    bench.fake.says("list_failed_handshakes", Ok(reply.clone()));
    let ran = bench.run("tls check --weak-clients").exits(1);
    assert!(ran.out.contains("10.1.0.9") && ran.out.contains("TLS 1.0"), "{}", ran.out);
    let part = ListFailedHandshakesReply { unreachable: vec!["n3".into()], ..reply };
    bench.fake.says("list_failed_handshakes", Ok(part));
    let ran = bench.run("tls check --weak-clients").exits(5);
    assert!(ran.err.contains("n3 does not answer"), "{}", ran.err);
}

#[test]
fn an_address_without_tls_is_looked_at_without_a_cluster() {
    let bench = Bench::new();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ran = bench.run(&format!("tls check {closed} -o json")).exits(1);
    assert!(ran.json()["endpoints"][0]["problems"][0].as_str().unwrap().starts_with("no TLS: "), "{}", ran.out);
    bench.run("tls check nonsense").exits(2);
}

fn old_entry(range: &str, last_seen: &str) -> AllowlistEntry {
    AllowlistEntry {
        connector: "scanners".into(),
        range: range.into(),
        created_at: "2026-01-01T00:00:00.000Z".into(),
        last_seen: last_seen.into(),
        ..AllowlistEntry::default()
    }
}

/// Two stale entries and one in use, as of a node whose memory begins at `since`.
fn entries(since: &str, unreachable: &[&str]) -> ListAllowlistEntriesReply {
    ListAllowlistEntriesReply {
        entries: vec![
            old_entry("10.0.0.1", ""),
            old_entry("10.0.0.2", "2026-06-29T00:00:00.000Z"),
            old_entry("10.0.0.3", "2026-02-01T00:00:00.000Z"),
        ],
        usage: Some(UsageScope {
            since: since.into(),
            since_node: "n2".into(),
            answered_at: "2026-06-30T00:00:00.000Z".into(),
            unreachable: unreachable.iter().map(|&name| name.to_owned()).collect(),
        }),
        ..ListAllowlistEntriesReply::default()
    }
}

#[test]
fn stale_entries_are_listed_and_removed_only_when_every_node_knows() {
    let bench = Bench::new();
    bench.fake.says("list_allowlist_entries", Ok(entries("2025-01-01T00:00:00Z", &[])));
    bench.fake.says("remove_allowlist_entries", Ok(written()));
    bench.fake.says("await_revision", Ok(AwaitRevisionReply::default()));
    let ran = bench.run("allowlist stale -o json");
    let ranges: Vec<_> = ran.json()["entries"].as_array().unwrap().iter().map(|one| one["range"].clone()).collect();
    assert_eq!((ranges, ran.exits(1).err.as_str()), (vec![json!("10.0.0.1"), json!("10.0.0.3")], ""));
    bench.run("allowlist stale --days 365").exits(0);
    bench.run("allowlist stale --days 0").exits(2);

    assert!(bench.run("allowlist stale --remove").exits(2).err.contains("--yes"), "it asks");
    let asked = bench.fake.asked("remove_allowlist_entries");
    assert!(asked.iter().all(|request| request["options"]["dry_run"] == true), "only tried: {asked:?}");
    let ran = bench.run("allowlist stale --remove --yes --reason review -o json").exits(0);
    assert_eq!(ran.json()["removed"].as_array().unwrap().len(), 2);
    let removal = bench.fake.asked("remove_allowlist_entries").pop().unwrap();
    assert_eq!((&removal["ranges"], &removal["options"]["dry_run"]), (&json!(["10.0.0.1", "10.0.0.3"]), &json!(false)));
    assert_eq!(removal["options"]["reason"], "review");

    // A node that cannot be asked, and one that cannot know.
    let before = bench.fake.asked("remove_allowlist_entries").len();
    bench.fake.says("list_allowlist_entries", Ok(entries("2025-01-01T00:00:00Z", &["n3"])));
    for line in ["allowlist stale", "allowlist stale --remove --yes"] {
        assert!(bench.run(line).exits(5).err.contains("n3"), "{line}");
    }
    bench.fake.says("list_allowlist_entries", Ok(entries("2026-06-01T00:00:00Z", &[])));
    assert!(bench.run("allowlist stale").exits(1).err.contains("n2 has kept"));
    let refused = bench.run("allowlist stale --remove --yes").exits(1);
    assert!(refused.err.contains("PH-ALLOW-010") && refused.err.contains("--accept-gap"), "{}", refused.err);
    assert_eq!(bench.fake.asked("remove_allowlist_entries").len(), before, "nothing was removed");
    bench.run("allowlist stale --remove --yes --accept-gap").exits(0);
    assert!(bench.fake.asked("remove_allowlist_entries").len() > before);
}

#[test]
fn a_dialogue_is_printed_line_by_line_and_one_session_ends_it() {
    let bench = Bench::new();
    let line = |session: &str, event: &str, data: &str| SessionLine {
        time: "2026-08-02T10:11:12.123Z".into(),
        node: "n2".into(),
        session_id: session.into(),
        event: event.into(),
        data: data.into(),
        ..SessionLine::default()
    };
    let lost = SessionLine { node: "n2".into(), lost: 7, ..SessionLine::default() };
    let lines = vec![
        line("A1", "<", "EHLO device\u{1b}[2J"),
        lost,
        line("B2", "<", "other"),
        line("A1", "-", ""),
        line("C3", "<", "later"),
    ];
    bench.fake.says("log_session", Ok(lines));
    let ran = bench.run("log session --source 10.0.0.0/8 --only-one --terse").exits(0);
    assert_eq!(ran.out, "< EHLO device\u{fffd}[2J\n-\n");
    assert!(ran.err.contains("7 lines of n2 were lost"), "{}", ran.err);
    assert_eq!(bench.fake.asked("log_session")[0]["source"], "10.0.0.0/8");
    // Without --only-one it goes on until the node ends.
    let ran = bench.run("log session --source 10.0.0.0/8 -o json").exits(5);
    let events: Vec<Value> = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((events.len(), &events[1]["lost"], &events[2]["data"]), (5, &json!(7), &json!("other")));
    bench.run("log session").exits(2);
}
