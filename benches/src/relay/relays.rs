//! The relays that are measured, each started anew in a directory of its own on the same disk.

use std::io::{Error, Result};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use posthouse_tests::{Ctl, Proc, binary, free_port};

/// How long a relay may take to answer.
const START: Duration = Duration::from_secs(60);

/// A relay that runs. It is stopped when forgotten.
pub struct Relay {
    /// As the table calls it.
    pub name: &'static str,
    /// Where it takes letters.
    pub smtp: SocketAddr,
    /// Whose processor time counts, with its children's.
    pub pid: u32,
    running: Running,
}

enum Running {
    Child(Child),
    Node(#[expect(dead_code, reason = "held until the end")] Proc),
    Postfix(PathBuf),
}

impl Drop for Relay {
    fn drop(&mut self) {
        match &mut self.running {
            Running::Child(child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Running::Node(_) => {}
            Running::Postfix(config) => {
                let _ = Command::new("postfix").arg("-c").arg(config).arg("abort").stderr(Stdio::null()).status();
            }
        }
    }
}

fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

fn wait_until_it_answers(name: &str, address: SocketAddr) -> Result<()> {
    let began = Instant::now();
    while TcpStream::connect(address).is_err() {
        if began.elapsed() > START {
            return Err(Error::other(format!("{name} does not answer on {address}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// One node of Posthouse, without a front.
///
/// # Errors
/// When it does not start.
pub fn posthouse(dir: &Path, sink: SocketAddr) -> Result<Relay> {
    let smtp = local();
    let text = format!(
        "[node]\nname = \"n1\"\ndata_dir = \"{d}/data\"\nfqdn = \"n1.posthouse.example\"\nsocket = \"{d}/node.sock\"\n\
         http = \"{}\"\n[cluster]\nlisten = \"{}\"\n[[smtp]]\nlisten = \"{smtp}\"\nservice_port = 25\n\
         [log]\nlevel = \"warn\"\n",
        local(),
        local(),
        d = dir.display()
    );
    let config = dir.join("node.toml");
    std::fs::write(&config, text)?;
    let node =
        Proc::start("n1", dir, &binary("posthouse"), &["node".into(), "--config".into(), config.display().to_string()]);
    let socket = dir.join("node.sock");
    let began = Instant::now();
    while !socket.exists() {
        if began.elapsed() > START {
            return Err(Error::other("the node does not open its socket"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let config_dir = dir.join("ctl").display().to_string();
    let socket = socket.display().to_string();
    let init = ["cluster", "init", "--name", "bench", "--context", "bench", "--smtp-name", "localhost"];
    Ctl::new(&["--config-dir", &config_dir, "--socket", &socket]).ok(&init);
    let ctl = Ctl::new(&["--config-dir", &config_dir, "--context", "bench"]);
    let connector = "connector create devices --template anonymous-relay --from 127.0.0.1 \
                     --max-inbound-connection-per-source unlimited";
    ctl.ok(&connector.split_ascii_whitespace().collect::<Vec<_>>());
    ctl.ok(&["route", "add", "*", "--to", &sink.to_string()]);
    wait_until_it_answers("posthouse", smtp)?;
    Ok(Relay { name: "posthouse", smtp, pid: node.child.id(), running: Running::Node(node) })
}

/// The bare loop, as another process of this program.
///
/// # Errors
/// When it does not start.
pub fn reference(dir: &Path, sink: SocketAddr) -> Result<Relay> {
    let smtp = local();
    let child = Command::new(std::env::current_exe()?)
        .args(["--reference", &smtp.to_string(), &sink.to_string()])
        .arg(dir.join("log"))
        .spawn()?;
    wait_until_it_answers("the reference", smtp)?;
    Ok(Relay { name: "reference", smtp, pid: child.id(), running: Running::Child(child) })
}

/// Postfix as shipped where it concerns what it promises, and with its limits out of the way. Must be root, as Postfix
/// itself must be.
///
/// # Errors
/// When it is not installed or does not start.
pub fn postfix(dir: &Path, sink: SocketAddr, outbound: u32, in_flow_delay: u32) -> Result<Relay> {
    let smtp = local();
    let config = dir.join("etc");
    for name in ["etc", "spool", "data"] {
        std::fs::create_dir_all(dir.join(name))?;
    }
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).map_err(Error::other)?;
    std::fs::write(config.join("cert.pem"), certified.cert.pem())?;
    std::fs::write(config.join("key.pem"), certified.signing_key.serialize_pem())?;
    let main = format!(
        "compatibility_level = 3.6\nqueue_directory = {d}/spool\ndata_directory = {d}/data\n\
         command_directory = /usr/sbin\ndaemon_directory = /usr/lib/postfix/sbin\nmail_owner = postfix\n\
         setgid_group = postdrop\nmyhostname = peer.example\nmydestination =\nlocal_recipient_maps =\n\
         mynetworks = 127.0.0.0/8\nsmtpd_relay_restrictions = permit_mynetworks, reject\n\
         relayhost = [127.0.0.1]:{port}\ninet_interfaces = 127.0.0.1\ninet_protocols = ipv4\n\
         smtpd_peername_lookup = no\nsmtp_dns_support_level = disabled\nsmtp_host_lookup = native\n\
         default_process_limit = 600\nsmtpd_client_connection_count_limit = 0\nin_flow_delay = {in_flow_delay}s\n\
         default_destination_concurrency_limit = {outbound}\ninitial_destination_concurrency = {outbound}\n\
         smtpd_tls_cert_file = {d}/etc/cert.pem\nsmtpd_tls_key_file = {d}/etc/key.pem\n\
         smtpd_tls_security_level = may\nalias_maps =\nalias_database =\n",
        d = dir.display(),
        port = sink.port(),
    );
    std::fs::write(config.join("main.cf"), main)?;
    let master = format!(
        "{smtp} inet n - n - - smtpd\npickup unix n - n 60 1 pickup\ncleanup unix n - n - 0 cleanup\n\
         qmgr unix n - n 300 1 qmgr\ntlsmgr unix - - n 1000? 1 tlsmgr\nrewrite unix - - n - - trivial-rewrite\n\
         bounce unix - - n - 0 bounce\ndefer unix - - n - 0 bounce\ntrace unix - - n - 0 bounce\n\
         verify unix - - n - 1 verify\nflush unix n - n 1000? 0 flush\nproxymap unix - - n - - proxymap\n\
         smtp unix - - n - - smtp\nrelay unix - - n - - smtp\nshowq unix n - n - - showq\n\
         error unix - - n - - error\nretry unix - - n - - error\ndiscard unix - - n - - discard\n\
         anvil unix - - n - 1 anvil\nscache unix - - n - 1 scache\npostlog unix-dgram n - n - 1 postlogd\n"
    );
    std::fs::write(config.join("master.cf"), master)?;
    let chown = Command::new("chown").arg("postfix").arg(dir.join("data")).status()?;
    let start = Command::new("postfix").arg("-c").arg(&config).arg("start").stderr(Stdio::null()).status();
    let start = start.map_err(|error| Error::other(format!("postfix: {error}: apt-get install postfix")))?;
    if !chown.success() || !start.success() {
        return Err(Error::other("postfix does not start; run this as root"));
    }
    wait_until_it_answers("postfix", smtp)?;
    let pid = std::fs::read_to_string(dir.join("spool/pid/master.pid"))?;
    let pid = pid.trim().parse().map_err(Error::other)?;
    Ok(Relay { name: "postfix", smtp, pid, running: Running::Postfix(config) })
}
