//! Three nodes, a front and a sink, as processes of the binaries under test.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::netns::{in_namespace, inside};
use crate::wait::until;

/// How long a part may take to start on a busy machine.
pub const START: Duration = Duration::from_secs(60);

/// The directory of the checkout.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A binary of this build: it lies beside the directory of the test's own executable.
pub fn binary(name: &str) -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    let path = deps.parent().unwrap().parent().unwrap().join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --workspace` first", path.display());
    path
}

/// Ports for one process: 100, held by a lock on a file for as long as the process lives.
fn port_block() -> u16 {
    use std::sync::OnceLock;
    static BLOCK: OnceLock<(u16, File)> = OnceLock::new();
    BLOCK
        .get_or_init(|| {
            let dir = std::env::temp_dir().join("posthouse-test-ports");
            std::fs::create_dir_all(&dir).unwrap();
            // Below the kernel's ephemeral ports, so that an outgoing connection does not take one of them.
            for base in (15_000..32_000).step_by(100) {
                let file = File::options().create(true).append(true).open(dir.join(base.to_string())).unwrap();
                let operation = rustix::fs::FlockOperation::NonBlockingLockExclusive;
                if rustix::fs::flock(&file, operation).is_ok() {
                    return (base, file);
                }
            }
            panic!("every block of test ports is taken")
        })
        .0
}

/// A port that nobody has.
pub fn free_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = port_block();
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(step < 100, "a test needs more than 100 ports");
        if TcpListener::bind(("127.0.0.1", base + step)).is_ok() {
            return base + step;
        }
    }
}

/// A process that is killed when forgotten.
pub struct Proc {
    pub name: String,
    pub child: Child,
    pub log: PathBuf,
}

impl Proc {
    pub fn start(name: &str, dir: &Path, program: &Path, args: &[String]) -> Self {
        Self::start_in(None, name, dir, program, args)
    }

    /// The same, in a network namespace.
    pub fn start_in(netns: Option<&str>, name: &str, dir: &Path, program: &Path, args: &[String]) -> Self {
        let log = dir.join(format!("{name}.log"));
        let out = File::options().create(true).append(true).open(&log).unwrap();
        let child = in_namespace(netns, program)
            .args(args)
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        Self { name: name.to_owned(), child, log }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// SIGSTOP has stopped every thread when this returns: one that still ran could greet a device.
    pub fn signal(&self, signal: Signal) {
        if signal == Signal::STOP { stop(self.pid()) } else { kill_process(self.pid(), signal).unwrap() }
    }

    /// SIGKILL, and wait until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and wait for its own end. Answers the exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        let status =
            until(Duration::from_secs(60), "the process ends after SIGTERM", || self.child.try_wait().unwrap());
        println!("{} ended: {status}", self.name);
        status.code()
    }

    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// Stops every thread of a process.
pub fn stop(pid: Pid) {
    kill_process(pid, Signal::STOP).unwrap();
    until(Duration::from_secs(10), "every thread is stopped", || is_stopped(pid).then_some(()));
}

/// Whether all threads are in state T (proc(5)).
fn is_stopped(pid: Pid) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())) else { return true };
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("stat")).ok())
        .all(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 'Z', 'X'])))
}

impl Drop for Proc {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let text = self.log_text();
            let tail: Vec<&str> = text.lines().rev().take(25).collect();
            eprintln!("---- the end of {}'s log", self.name);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// posthousectl with a context.
#[derive(Clone)]
pub struct Ctl {
    base: Vec<String>,
    netns: Option<String>,
}

impl Ctl {
    pub fn new(base: &[&str]) -> Self {
        Self { base: base.iter().map(|&word| word.to_owned()).collect(), netns: None }
    }

    /// The same, run in a network namespace.
    #[must_use]
    pub fn within(self, netns: Option<String>) -> Self {
        Self { netns, ..self }
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// The command, not yet run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = in_namespace(self.netns.as_deref(), &binary("posthousectl"));
        command.args(&self.base).args(args).env_remove("POSTHOUSECTL_CONFIG_DIR").stdin(Stdio::null());
        command
    }

    /// Runs and demands exit code 0; answers standard output.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "posthousectl {args:?}: {}\n{out}{err}", output.status);
        out.into_owned()
    }

    /// Runs with `-o json` and reads the answer, whatever the exit code.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["-o", "json"]].concat());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            panic!("posthousectl {args:?}: {error}\n{out}{err}")
        })
    }

    /// Runs with `-o json` and reads the answer, if there is one: a cluster that starts does not answer yet.
    pub fn try_json(&self, args: &[&str]) -> Option<Value> {
        serde_json::from_slice(&self.run(&[args, &["-o", "json"]].concat()).stdout).ok()
    }

    /// Runs and answers the exit code and standard error.
    pub fn fails(&self, args: &[&str]) -> (i32, String) {
        let output = self.run(args);
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// One node's addresses.
#[derive(Clone)]
pub struct NodeAddresses {
    pub name: String,
    pub dir: PathBuf,
    pub rpc: SocketAddr,
    pub http: SocketAddr,
    pub smtp: SocketAddr,
    pub submission: SocketAddr,
    pub submissions: SocketAddr,
    /// The network namespace it runs in, when it is not the test's own.
    pub netns: Option<String>,
    /// A library that is loaded before all others at its next start: how a test breaks what it wants to see noticed.
    pub preload: Option<PathBuf>,
}

/// Where one process of a cluster runs.
#[derive(Clone)]
pub struct Place {
    /// Its address; also the one that a front dials nodes from.
    pub address: IpAddr,
    /// Its network namespace, when it is not the test's own.
    pub netns: Option<String>,
}

/// The scene of a cluster: who runs where, and what else stands in the files of nodes.
pub struct Stage<'a> {
    /// Asked for `sink`, `n1`, `n2`, `n3` and `front`, with the directory that each has to itself, before it is used.
    pub place: &'a dyn Fn(&str, &Path) -> Place,
    /// Where the front listens, and where devices find it.
    pub listen: IpAddr,
    pub target: IpAddr,
    /// The addresses of devices that may relay.
    pub devices: &'a str,
    /// Lines for the `[cluster]` section of every node file; none: the product's own times of elections.
    pub cluster_lines: &'a str,
    /// More lines for every node file, and for the front's.
    pub node_lines: &'a str,
    pub front_lines: &'a str,
    /// Where each node answers agent checks, at its own address.
    pub agent_port: Option<u16>,
}

/// Everything on loopback.
fn on_loopback(name: &str, _: &Path) -> Place {
    let last = if name == "front" { 2 } else { 1 };
    Place { address: IpAddr::from([127, 0, 0, last]), netns: None }
}

impl Stage<'_> {
    pub fn loopback() -> Self {
        let (listen, target) = (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into());
        Self {
            place: &on_loopback,
            listen,
            target,
            devices: "127.0.31.0/24",
            cluster_lines: "",
            node_lines: "",
            front_lines: "",
            agent_port: None,
        }
    }
}

/// A machine that runs several clusters at once keeps a leader waiting for a core longer than an election takes by
/// default. What is measured against elections starts on a stage with the product's own times.
const PATIENT: &str = "election_timeout_min = \"400ms\"\nelection_timeout_max = \"600ms\"\n";

/// Three nodes, a front and a sink.
pub struct TestCluster {
    pub nodes: Vec<NodeAddresses>,
    pub procs: Vec<Option<Proc>>,
    pub front: Option<Proc>,
    pub sink: Proc,
    pub smtp: SocketAddr,
    pub submission: SocketAddr,
    pub submissions: SocketAddr,
    pub front_http: SocketAddr,
    pub sink_addr: SocketAddr,
    pub ctl: Ctl,
    pub user: String,
    pub password: String,
    /// Where the sink and the devices are.
    pub netns: Option<String>,
    /// Where the front is.
    pub front_netns: Option<String>,
    devices: String,
    /// The last field: it is dropped last, and a process that ends in a failed test shows its log first.
    pub dir: TempDir,
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

impl TestCluster {
    /// Starts and joins everything, and makes the objects that most tests need: accepted domain `corp.example`,
    /// connector `printers` for 127.0.31.0/24, route `*` to the sink, credential `scanner@corp.example`.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// The same, with more lines in every node file.
    pub fn start_with(extra: &str) -> Self {
        Self::start_on(&Stage { cluster_lines: PATIENT, node_lines: extra, ..Stage::loopback() })
    }

    /// The same, elsewhere.
    pub fn start_on(stage: &Stage<'_>) -> Self {
        let dir = tempfile::Builder::new().prefix("posthouse-test-").tempdir().unwrap();
        let root = dir.path().to_owned();
        let place = |name: &str| {
            let own = root.join(name);
            std::fs::create_dir_all(&own).unwrap();
            (stage.place)(name, &own)
        };
        let at_sink = place("sink");
        let sink_addr = SocketAddr::new(at_sink.address, free_port());
        let maildir = root.join("maildir");
        let sink_args = ["sink", "--listen", &sink_addr.to_string(), "--maildir", maildir.to_str().unwrap()];
        let netns = at_sink.netns.as_deref();
        let sink = Proc::start_in(netns, "sink", &root, &binary("posthouse"), &sink_args.map(str::to_owned));
        let nodes: Vec<_> = ["n1", "n2", "n3"].map(|name| node_files(&root, name, place(name), stage)).into();
        let procs = nodes.iter().map(|node| Some(start_node(&root, node))).collect();
        let at_front = place("front");
        let ports = [free_port(), free_port(), free_port()];
        let front_http = local(free_port());
        front_files(&root, "front", "front1", &at_front, stage, ports, front_http);
        let [smtp, submission, submissions] = ports.map(|port| SocketAddr::new(stage.target, port));
        let ctl_dir = root.join("ctl");
        let ctl = Ctl::new(&["--config-dir", ctl_dir.to_str().unwrap(), "--context", "test"]);
        let mut cluster = Self {
            dir,
            nodes,
            procs,
            front: None,
            sink,
            smtp,
            submission,
            submissions,
            front_http,
            sink_addr,
            ctl: ctl.within(at_sink.netns.clone()),
            user: "scanner@corp.example".to_owned(),
            password: String::new(),
            netns: at_sink.netns,
            front_netns: at_front.netns,
            devices: stage.devices.to_owned(),
        };
        cluster.start_front();
        cluster.init();
        cluster
    }

    /// Runs `what` where the devices are.
    pub fn at_devices<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        inside(self.netns.as_deref(), what)
    }

    /// A page of a node.
    pub fn node_page(&self, index: usize, path: &str) -> (u16, String) {
        let node = &self.nodes[index];
        inside(node.netns.as_deref(), || crate::http_get(node.http, path))
    }

    /// A page of the front.
    pub fn front_page(&self, path: &str) -> (u16, String) {
        inside(self.front_netns.as_deref(), || crate::http_get(self.front_http, path))
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn start_front(&mut self) {
        let config = self.path().join("front/front.toml");
        let args = ["front".to_owned(), "--config".to_owned(), config.display().to_string()];
        let netns = self.front_netns.clone();
        self.front = Some(Proc::start_in(netns.as_deref(), "front", self.path(), &binary("posthouse"), &args));
    }

    /// posthousectl on a local socket.
    pub fn local_ctl(&self, socket: &str) -> Ctl {
        let (config, socket) = (self.path().join("ctl"), self.path().join(socket));
        let ctl = Ctl::new(&["--config-dir", config.to_str().unwrap(), "--socket", socket.to_str().unwrap()]);
        ctl.within(self.netns.clone())
    }

    fn init(&mut self) {
        for socket in ["n1/node.sock", "n2/node.sock", "n3/node.sock", "front/front.sock"] {
            let path = self.path().join(socket);
            until(START, socket, || path.exists().then_some(()));
        }
        self.local_ctl("n1/node.sock").ok(&[
            "cluster",
            "init",
            "--name",
            "test",
            "--context",
            "test",
            "--smtp-name",
            "localhost",
        ]);
        for node in ["n2", "n3"] {
            let token = self.token("voter");
            self.local_ctl(&format!("{node}/node.sock")).ok(&["node", "add", "--token", &token]);
        }
        let token = self.token("front");
        self.local_ctl("front/front.sock").ok(&["front", "add", "--token", &token]);
        self.ctl.ok(&["domain", "add", "corp.example"]);
        self.ctl.ok(&["connector", "create", "printers", "--template", "anonymous-relay", "--from", &self.devices]);
        self.ctl.ok(&["route", "add", "*", "--to", &self.sink_addr.to_string()]);
        let made = self.ctl.json(&["credential", "create", &self.user.clone(), "--own-domain", "--generate"]);
        self.password = made["password"].as_str().expect("the generated password is shown once").to_owned();
        self.wait_for_front();
    }

    pub fn token(&self, role: &str) -> String {
        let made = self.ctl.json(&["cluster", "join-token", "create", "--role", role]);
        made["token"].as_str().expect("a token").to_owned()
    }

    /// Waits until the front answers with a banner.
    pub fn wait_for_front(&self) {
        until(START, "the front gives a banner", || {
            use std::io::Read;
            self.at_devices(|| {
                let mut stream = TcpStream::connect_timeout(&self.smtp, Duration::from_secs(5)).ok()?;
                stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
                let mut code = [0; 3];
                stream.read_exact(&mut code).ok()?;
                (&code == b"220").then_some(())
            })
        });
    }

    /// Waits until every member answers, votes and is ready.
    pub fn wait_healthy(&self) -> Value {
        until(START, "every member answers and a leader is known", || {
            let status = self.ctl.try_json(&["cluster", "status"])?;
            let members = status["members"].as_array()?;
            let well = status["leader"].is_string()
                && members.len() == self.nodes.len()
                && members.iter().all(|member| member["reachable"] == true && member["ready"] == true);
            well.then_some(status)
        })
    }

    /// The index of the node that leads.
    pub fn leader(&self) -> usize {
        until(START, "a leader", || {
            let status = self.ctl.try_json(&["cluster", "status"])?;
            let leader = status["leader"].as_str()?;
            self.nodes.iter().position(|node| node.name == leader)
        })
    }

    pub fn kill_node(&mut self, index: usize) {
        self.procs[index].as_mut().expect("it runs").kill();
        self.procs[index] = None;
    }

    pub fn restart_node(&mut self, index: usize) {
        assert!(self.procs[index].is_none());
        self.procs[index] = Some(start_node(self.dir.path(), &self.nodes[index]));
    }

    /// The letters in the sink, whole.
    pub fn letters(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path().join("maildir/new")) else { return Vec::new() };
        entries
            .filter_map(|entry| std::fs::read(entry.ok()?.path()).ok())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .collect()
    }

    /// Waits for the letter that holds `needle`.
    pub fn letter_with(&self, needle: &str) -> String {
        until(START, &format!("the letter with {needle} arrives"), || {
            self.letters().into_iter().find(|letter| letter.contains(needle))
        })
    }
}

fn node_files(root: &Path, name: &str, place: Place, stage: &Stage<'_>) -> NodeAddresses {
    let dir = root.join(name);
    let at = |port: u16| SocketAddr::new(place.address, port);
    let node = NodeAddresses {
        name: name.to_owned(),
        dir: dir.clone(),
        rpc: at(free_port()),
        http: at(free_port()),
        smtp: at(free_port()),
        submission: at(free_port()),
        submissions: at(free_port()),
        netns: place.netns,
        preload: None,
    };
    let (cluster, extra) = (stage.cluster_lines, stage.node_lines);
    let agent = stage.agent_port.map_or_else(String::new, |port| format!("agent = \"{}\"\n", at(port)));
    let text = format!(
        "[node]\nname = \"{name}\"\ndata_dir = \"{d}/data\"\nfqdn = \"{name}.posthouse.example\"\n\
         socket = \"{d}/node.sock\"\nhttp = \"{}\"\n{agent}[cluster]\nlisten = \"{}\"\n{cluster}\
         [[smtp]]\nlisten = \"{}\"\nservice_port = 25\n[[smtp]]\nlisten = \"{}\"\nservice_port = 587\n\
         [[smtp]]\nlisten = \"{}\"\nservice_port = 465\n{extra}\n",
        node.http,
        node.rpc,
        node.smtp,
        node.submission,
        node.submissions,
        d = dir.display(),
    );
    std::fs::write(dir.join("node.toml"), text).unwrap();
    node
}

/// Writes `DIR/front.toml` for one more front: services 25, 587 and 465 on these ports.
pub fn front_files(
    root: &Path,
    dir: &str,
    name: &str,
    place: &Place,
    stage: &Stage<'_>,
    ports: [u16; 3],
    http: SocketAddr,
) {
    let dir = root.join(dir);
    std::fs::create_dir_all(&dir).unwrap();
    let [smtp, submission, submissions] = ports.map(|port| SocketAddr::new(stage.listen, port));
    let text = format!(
        "[front]\nname = \"{name}\"\ndata_dir = \"{d}/data\"\nsocket = \"{d}/front.sock\"\n\
         dial_from = \"{from}\"\nhttp = \"{http}\"\n\
         [[listen]]\naddress = \"{smtp}\"\nservice_port = 25\n\
         [[listen]]\naddress = \"{submission}\"\nservice_port = 587\n\
         [[listen]]\naddress = \"{submissions}\"\nservice_port = 465\nimplicit_tls = true\n{lines}\n",
        d = dir.display(),
        from = place.address,
        lines = stage.front_lines,
    );
    std::fs::write(dir.join("front.toml"), text).unwrap();
}

fn start_node(root: &Path, node: &NodeAddresses) -> Proc {
    let config = node.dir.join("node.toml");
    let args = ["node".to_owned(), "--config".to_owned(), config.display().to_string()];
    let (program, netns) = (binary("posthouse"), node.netns.as_deref());
    let Some(library) = &node.preload else { return Proc::start_in(netns, &node.name, root, &program, &args) };
    // env becomes the program: same process id.
    let before = [format!("LD_PRELOAD={}", library.display()), program.display().to_string()];
    let args: Vec<String> = before.into_iter().chain(args).collect();
    Proc::start_in(netns, &node.name, root, Path::new("env"), &args)
}
