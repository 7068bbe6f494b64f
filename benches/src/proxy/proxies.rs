//! The proxies that are measured.

use std::io::{Error, Result};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use posthouse_tests::{Ctl, Proc, binary, free_port};
use serde_json::Value;

const START: Duration = Duration::from_secs(60);

/// A proxy that runs. It is killed when forgotten.
pub struct Proxy {
    /// As the table calls it.
    pub name: &'static str,
    /// Where devices connect.
    pub address: SocketAddr,
    /// Whose time and memory count, with its children's.
    pub pid: u32,
    child: Option<Child>,
    _front: Option<Proc>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // SIGTERM, so that nginx takes its workers with it.
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            let _ = child.wait();
        }
    }
}

fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

fn until(what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    let began = Instant::now();
    while !done() {
        if began.elapsed() > START {
            return Err(Error::other(format!("{what}: not within {START:?}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn greets(address: SocketAddr) -> bool {
    use std::io::Read;
    let Ok(mut tcp) = std::net::TcpStream::connect(address) else { return false };
    let _ = tcp.set_read_timeout(Some(Duration::from_secs(2)));
    let mut code = [0; 3];
    tcp.read_exact(&mut code).is_ok() && &code == b"220"
}

fn spawn(name: &'static str, address: SocketAddr, command: &mut Command) -> Result<Proxy> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let child = child.map_err(|error| Error::other(format!("{name}: {error}: apt-get install {name}")))?;
    let proxy = Proxy { name, address, pid: child.id(), child: Some(child), _front: None };
    until(name, || greets(address))?;
    Ok(proxy)
}

/// HAProxy with two threads, send-proxy-v2 and splice.
///
/// # Errors
/// When it is not installed or does not start.
pub fn haproxy(dir: &Path, backends: &[SocketAddr]) -> Result<Proxy> {
    let address = local();
    let servers: String = backends
        .iter()
        .enumerate()
        .map(|(number, backend)| format!("  server s{number} {backend} send-proxy-v2 check-send-proxy check inter 500ms fastinter 100ms fall 2 rise 2\n"))
        .collect();
    // With its pipes two and a half descriptors each: more would not start where a process may open 20,000 files.
    let text = format!(
        "global\n  nbthread 2\n  maxconn 7900\ndefaults\n  mode tcp\n  option splice-auto\n  option redispatch\n\
         \x20 balance leastconn\n  timeout connect 300ms\n  timeout client 1h\n  timeout server 1h\n\
         frontend f\n  bind {address}\n  default_backend b\nbackend b\n  option tcp-check\n  tcp-check expect rstring ^220\n{servers}"
    );
    let config = dir.join("haproxy.cfg");
    std::fs::write(&config, text)?;
    spawn("haproxy", address, Command::new("haproxy").arg("-db").arg("-f").arg(&config))
}

/// nginx `stream` with two workers.
///
/// # Errors
/// When it is not installed or does not start.
pub fn nginx(dir: &Path, backends: &[SocketAddr]) -> Result<Proxy> {
    let address = local();
    let servers: String = backends.iter().map(|backend| format!("server {backend};")).collect();
    let d = dir.display();
    let text = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\nworker_processes 2;\n\
         worker_rlimit_nofile 20000;\npid {d}/nginx.pid;\nerror_log {d}/error.log;\n\
         events {{ worker_connections 20000; }}\nstream {{ upstream b {{ least_conn; {servers} }}\n\
         server {{ listen {address} backlog=4096; proxy_pass b; proxy_protocol on; proxy_timeout 1h; }} }}\n"
    );
    let config = dir.join("nginx.conf");
    std::fs::write(&config, text)?;
    spawn("nginx", address, Command::new("nginx").arg("-c").arg(&config).arg("-e").arg(dir.join("early.log")))
}

/// The bare splice loop, as another process of this program. It sends no PROXY header.
///
/// # Errors
/// When it does not start.
pub fn bare(backend: SocketAddr) -> Result<Proxy> {
    let address = local();
    let mut command = Command::new(std::env::current_exe()?);
    spawn("bare", address, command.args(["--bare", &address.to_string(), &backend.to_string()]))
}

/// A front of Posthouse that knows these backends from its last set. It has joined a real cluster, which is gone.
///
/// # Errors
/// When it does not start.
pub fn front(dir: &Path, backends: &[SocketAddr]) -> Result<Proxy> {
    let address = local();
    let d = dir.display().to_string();
    let node = format!(
        "[node]\nname = \"n1\"\ndata_dir = \"{d}/data\"\nsocket = \"{d}/node.sock\"\nhttp = \"{}\"\n\
         [cluster]\nlisten = \"{}\"\n[[smtp]]\nlisten = \"{}\"\nservice_port = 25\n",
        local(),
        local(),
        local()
    );
    std::fs::write(dir.join("node.toml"), node)?;
    let text = format!(
        "[front]\nname = \"front1\"\ndata_dir = \"{d}/front\"\nsocket = \"{d}/front.sock\"\ndial_from = \"127.0.0.2\"\n\
         http = \"{}\"\n[[listen]]\naddress = \"{address}\"\nservice_port = 25\n[check]\nstarttls = false\n\
         slowstart = \"0s\"\n[limits]\nmax_connections_per_source = 0\nconnections_per_source_per_second = 0\n\
         [log]\nlevel = \"error\"\n",
        local()
    );
    let config = dir.join("front.toml");
    std::fs::write(&config, text)?;
    let posthouse = binary("posthouse");
    let args = |role: &str, file: &Path| [role.to_owned(), "--config".to_owned(), file.display().to_string()];
    let mut node = Proc::start("n1", dir, &posthouse, &args("node", &dir.join("node.toml")));
    let mut joining = Proc::start("front", dir, &posthouse, &args("front", &config));
    let config_dir = format!("{d}/ctl");
    let by_socket = |name: &str| Ctl::new(&["--config-dir", &config_dir, "--socket", &format!("{d}/{name}.sock")]);
    until("node and front open their sockets", || dir.join("node.sock").exists() && dir.join("front.sock").exists())?;
    by_socket("node").ok(&["cluster", "init", "--name", "bench", "--context", "bench", "--smtp-name", "localhost"]);
    let ctl = Ctl::new(&["--config-dir", &config_dir, "--context", "bench"]);
    let token = ctl.json(&["cluster", "join-token", "create", "--role", "front"]);
    let token = token["token"].as_str().unwrap_or_default().to_owned();
    by_socket("front").ok(&["front", "add", "--token", &token]);
    let known = dir.join("front/backends.json");
    until("the front knows its backends", || known.exists())?;
    joining.kill();
    node.kill();
    // The set as the cluster would have told it, had these been its nodes.
    let mut set: Value = serde_json::from_slice(&std::fs::read(&known)?)?;
    let one = set["backends"][0].clone();
    let all = backends.iter().enumerate().map(|(number, backend)| {
        let mut known = one.clone();
        known["node"] = Value::from(format!("n{}", number + 1));
        if let Some(services) = known["services"].as_array_mut() {
            services.iter_mut().for_each(|service| service["address"] = Value::from(backend.to_string()));
        }
        known
    });
    set["backends"] = all.collect();
    std::fs::write(&known, serde_json::to_vec(&set)?)?;
    let front = Proc::start("front", dir, &posthouse, &args("front", &config));
    let pid = front.child.id();
    let proxy = Proxy { name: "posthouse", address, pid, child: None, _front: Some(front) };
    until("the front greets", || greets(address))?;
    Ok(proxy)
}
