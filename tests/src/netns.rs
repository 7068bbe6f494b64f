//! Small networks of the test's own: one namespace for each machine, a switch between them, cables that can be cut.
//! Made with iproute2, removed when forgotten; what an earlier run left behind because it was killed goes first.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where iproute2 keeps the names.
const NAMES: &str = "/run/netns";
/// Every namespace of ours is called `phtest-PID-NUMBER-NAME`.
const PREFIX: &str = "phtest-";
/// The only interface of each machine, beside its loopback.
pub const INTERFACE: &str = "eth0";

/// A command that runs in a network namespace, or here. The program takes the place of the helper: same process id,
/// and in the process list it looks as if it had been started by itself.
pub fn in_namespace(netns: Option<&str>, program: &Path) -> Command {
    let Some(name) = netns else { return Command::new(program) };
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={NAMES}/{name}")).arg(program);
    command
}

/// Runs `what` on a thread in a network namespace, or here. Threads that it starts are there, too.
pub fn inside<T: Send>(netns: Option<&str>, what: impl FnOnce() -> T + Send) -> T {
    let Some(name) = netns else { return what() };
    let namespace = std::fs::File::open(Path::new(NAMES).join(name)).unwrap();
    std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            what()
        });
        there.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Fails with the reason when this process may not make networks.
#[track_caller]
pub fn need_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "NOT RUN: this test makes network namespaces and mounts, and needs root: sudo -E tests/run.sh"
    );
}

#[track_caller]
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; tests/run.sh installs it"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {said}", args.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn ip(args: &str) -> String {
    run("ip", &args.split(' ').collect::<Vec<_>>())
}

/// A switch and the machines on it.
pub struct Lab {
    tag: String,
    hosts: Vec<String>,
}

impl Lab {
    /// A switch with nobody on it.
    #[track_caller]
    pub fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        need_root();
        remove_leftovers();
        let tag = format!("{PREFIX}{}-{}-", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut lab = Self { tag, hosts: Vec::new() };
        let switch = lab.add("switch");
        ip(&format!("-n {switch} link add br0 type bridge"));
        ip(&format!("-n {switch} link set br0 up"));
        lab.nft(
            "add table bridge cut; add set bridge cut pairs { type ipv4_addr . ipv4_addr; }
             add chain bridge cut forward { type filter hook forward priority 0; }
             add rule bridge cut forward ip saddr . ip daddr @pairs drop",
        );
        lab
    }

    fn add(&mut self, name: &str) -> String {
        let netns = self.netns(name);
        ip(&format!("netns add {netns}"));
        self.hosts.push(netns.clone());
        ip(&format!("-n {netns} link set lo up"));
        netns
    }

    /// The namespace of a machine.
    pub fn netns(&self, name: &str) -> String {
        format!("{}{name}", self.tag)
    }

    /// One more machine on the switch, with these addresses in 10.98.0.0/16.
    pub fn host(&mut self, name: &str, addresses: &[Ipv4Addr]) -> String {
        let (netns, switch) = (self.add(name), self.netns("switch"));
        ip(&format!("link add {INTERFACE} netns {netns} type veth peer name port-{name} netns {switch}"));
        ip(&format!("-n {switch} link set port-{name} master br0 up"));
        for address in addresses {
            ip(&format!("-n {netns} addr add {address}/16 dev {INTERFACE}"));
        }
        ip(&format!("-n {netns} link set {INTERFACE} up"));
        netns
    }

    /// Makes every address of a range a machine's own, as many devices as there are.
    pub fn owns(&self, name: &str, range: &str) {
        ip(&format!("-n {} route add local {range} dev lo", self.netns(name)));
    }

    /// Pulls the cable of a machine out, or puts it back: the machine sees its interface without a carrier.
    pub fn cable(&self, name: &str, plugged: bool) {
        let (switch, state) = (self.netns("switch"), if plugged { "up" } else { "down" });
        ip(&format!("-n {switch} link set port-{name} {state}"));
    }

    /// Makes the switch drop every frame of a machine, or carry them again: the machine's interface stays up.
    pub fn port(&self, name: &str, carries: bool) {
        // 0 is disabled, 3 is forwarding.
        let state = if carries { 3 } else { 0 };
        run(
            "bridge",
            &["-n", &self.netns("switch"), "link", "set", "dev", &format!("port-{name}"), "state", &state.to_string()],
        );
    }

    /// Makes the switch drop every packet from one address to another, or carry them again. The other direction goes on.
    pub fn one_way(&self, from: Ipv4Addr, to: Ipv4Addr, dropped: bool) {
        let verb = if dropped { "add" } else { "delete" };
        self.nft(&format!("{verb} element bridge cut pairs {{ {from} . {to} }}"));
    }

    fn nft(&self, rules: &str) {
        let mut command = in_namespace(Some(&self.netns("switch")), Path::new("nft"));
        let output = command.arg(rules).output().unwrap_or_else(|error| panic!("nft: {error}"));
        assert!(output.status.success(), "nft {rules}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Whether a machine has an address now.
    pub fn has(&self, name: &str, address: Ipv4Addr) -> bool {
        ip(&format!("-n {} -4 -o addr show dev {INTERFACE}", self.netns(name))).contains(&format!(" {address}/"))
    }

    /// Runs `what` on a machine.
    pub fn at<T: Send>(&self, name: &str, what: impl FnOnce() -> T + Send) -> T {
        inside(Some(&self.netns(name)), what)
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.hosts.iter().rev().for_each(|netns| remove(netns));
    }
}

/// Ends whoever runs in a namespace of ours, and takes its name away: the kernel does the rest.
fn remove(netns: &str) {
    let said = Command::new("ip").args(["netns", "pids", netns]).output().map(|output| output.stdout);
    let said = said.unwrap_or_default();
    let pids =
        String::from_utf8_lossy(&said).split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>();
    for pid in pids.into_iter().filter_map(Pid::from_raw) {
        // One of this test's own threads that is in there belongs to this process.
        if pid != rustix::process::getpid() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    let _ = Command::new("ip").args(["netns", "del", netns]).stderr(Stdio::null()).status();
    // keepalived makes a directory for each namespace that it runs in.
    let _ = std::fs::remove_dir_all(format!("/run/keepalived/keepalived_{netns}"));
}

/// Removes the namespaces of test processes that are gone.
fn remove_leftovers() {
    let Ok(entries) = std::fs::read_dir(NAMES) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !PathBuf::from(format!("/proc/{pid}")).exists()) {
            remove(&name);
        }
    }
}
