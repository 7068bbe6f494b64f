//! Letters through one node beside Postfix and beside a bare log-and-forward loop, on the same disk with the same sync
//! promise, alternating: `cargo build --release && cargo bench -p posthouse-benches --bench relay`, as root, with
//! Debian's package postfix. `-- --rounds 5 --only 10240/20` chooses; `--keep DIR` says on which disk.

use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use posthouse_benches::relay::generator::{Load, send};
use posthouse_benches::relay::relays::{Relay, postfix, posthouse, reference};
use posthouse_benches::relay::sink::Sink;
use posthouse_benches::relay::{Run, median, process, reference as bare};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio_rustls::TlsConnector;

/// What did not arrive by then is lost.
const ARRIVAL: Duration = Duration::from_secs(120);
/// A run ends by itself at about this length.
const RUN: Duration = Duration::from_secs(4);

struct Setting {
    name: String,
    load: Load,
}

fn settings() -> Vec<Setting> {
    let mut all = Vec::new();
    let load = |size, connections, per_connection, starttls| Load {
        connections,
        letters: 0,
        per_connection,
        size,
        starttls,
        rate: None,
    };
    for size in [1024, 10_240, 102_400] {
        for connections in [1, 20, 100, 500] {
            all.push(Setting { name: format!("{size}/{connections}"), load: load(size, connections, 100, false) });
        }
    }
    all.push(Setting { name: "single/20".to_owned(), load: load(10_240, 20, 1, false) });
    all.push(Setting { name: "single-starttls/20".to_owned(), load: load(10_240, 20, 1, true) });
    all
}

/// Peers' certificates are made for the run: whose they are is not what is measured.
#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn tls() -> Result<TlsConnector> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn run(relay: &Relay, sink: &Sink, load: &Load, tls: &TlsConnector) -> Result<Run> {
    let arrivals = sink.expect(load.letters);
    let before = process::cpu(relay.pid);
    let heard = send(load, relay.smtp, tls).await.map_err(|error| Error::other(format!("{}: {error}", relay.name)))?;
    let patience = Instant::now();
    while arrivals.distinct() < heard.accepted && patience.elapsed() < ARRIVAL {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let cpu = process::cpu(relay.pid).saturating_sub(before);
    let accepting = heard.ended - heard.began;
    let delivering = arrivals.last().saturating_duration_since(heard.began);
    Ok(Run {
        accepted: heard.accepted as f64 / accepting.as_secs_f64(),
        delivered: arrivals.distinct() as f64 / delivering.as_secs_f64(),
        p50_ms: heard.percentile(0.5).as_secs_f64() * 1e3,
        p99_ms: heard.percentile(0.99).as_secs_f64() * 1e3,
        cpu_ms: cpu.as_secs_f64() * 1e3 / heard.accepted as f64,
        lost: heard.accepted.saturating_sub(arrivals.distinct()),
        doubled: arrivals.doubled(),
    })
}

/// As many letters as make a run of a few seconds, found with a short run.
async fn letters_for(relay: &Relay, sink: &Sink, load: &Load, tls: &TlsConnector) -> Result<usize> {
    let least = load.connections * if load.per_connection == 1 { 4 } else { 1 };
    let probe = Load { letters: least.max(40) * load.per_connection.min(10), ..load.clone() };
    let found = run(relay, sink, &probe, tls).await?;
    let rate = found.delivered.min(found.accepted);
    let wanted = (rate * RUN.as_secs_f64()) as usize;
    // Every connection has the letters that it is due, and no run fills a disk.
    let bytes_max = 600 << 20;
    Ok(wanted.clamp(load.connections * load.per_connection.min(20), (bytes_max / load.size).max(1)))
}

fn show(name: &str, run: &Run) {
    println!(
        "  {name:<10} {:>9.0} accepted/s {:>9.0} delivered/s   p50 {:>8.2} ms  p99 {:>8.2} ms  cpu {:>7.3} ms  lost {}  twice {}",
        run.accepted, run.delivered, run.p50_ms, run.p99_ms, run.cpu_ms, run.lost, run.doubled
    );
}

struct Options {
    rounds: usize,
    only: Vec<String>,
    without: Vec<String>,
    dir: PathBuf,
}

fn options() -> Result<Options> {
    let mut found =
        Options { rounds: 5, only: Vec::new(), without: Vec::new(), dir: std::env::temp_dir().join("posthouse-bench") };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| Error::other(format!("{word} needs a value")));
        match word.as_str() {
            // What cargo itself says.
            "--bench" => {}
            "--rounds" => found.rounds = value()?.parse().map_err(Error::other)?,
            "--only" => found.only.push(value()?),
            "--without" => found.without.push(value()?),
            "--keep" => found.dir = value()?.into(),
            _ => return Err(Error::other(format!("{word}: --rounds N, --only SETTING, --without PEER, --keep DIR"))),
        }
    }
    Ok(found)
}

async fn measure(options: &Options, sink: &Sink, setting: &Setting, tls: &TlsConnector) -> Result<()> {
    println!("{}", setting.name);
    let fresh = |name: &str| -> Result<PathBuf> {
        let dir = options.dir.join(name);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    };
    let mut sides: Vec<(Relay, usize, Vec<Run>)> = Vec::new();
    for name in ["posthouse", "postfix", "reference"] {
        let is_left_out =
            options.without.iter().any(|without| without == name) || (name == "reference" && setting.load.starttls);
        if is_left_out {
            continue;
        }
        let dir = fresh(name)?;
        let relay = match name {
            "posthouse" => posthouse(&dir, sink.address)?,
            "postfix" => postfix(&dir, sink.address, 50, 0)?,
            _ => reference(&dir, sink.address)?,
        };
        let letters = letters_for(&relay, sink, &setting.load, tls).await?;
        sides.push((relay, letters, Vec::new()));
    }
    for round in 0..options.rounds {
        let count = sides.len();
        for place in 0..count {
            let (relay, letters, runs) = &mut sides[(place + round) % count];
            let load = Load { letters: *letters, ..setting.load.clone() };
            runs.push(run(relay, sink, &load, tls).await?);
        }
    }
    let medians: Vec<(&str, Run)> = sides.iter().map(|(relay, _, runs)| (relay.name, median(runs))).collect();
    medians.iter().for_each(|(name, run)| show(name, run));
    let find = |name: &str| medians.iter().find(|(found, _)| *found == name).map(|(_, run)| run);
    if let (Some(ours), Some(peer)) = (find("posthouse"), find("postfix")) {
        println!(
            "  beside Postfix: delivered {:.1} x, accepted {:.1} x, cpu 1/{:.1}, p50 1/{:.1}, p99 1/{:.1}",
            ours.delivered / peer.delivered,
            ours.accepted / peer.accepted,
            peer.cpu_ms / ours.cpu_ms,
            peer.p50_ms / ours.p50_ms,
            peer.p99_ms / ours.p99_ms
        );
    }
    if let (Some(ours), Some(bare)) = (find("posthouse"), find("reference")) {
        println!(
            "  beside the bare loop: delivered {:.2} x, cpu {:.2} x",
            ours.delivered / bare.delivered,
            ours.cpu_ms / bare.cpu_ms
        );
    }
    Ok(())
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some("--reference") {
        let address =
            |word: Option<String>| word.unwrap_or_default().parse::<std::net::SocketAddr>().map_err(Error::other);
        let (listen, to) = (address(words.next())?, address(words.next())?);
        let log = words.next().unwrap_or_default();
        return runtime.block_on(bare::serve(listen, to, Path::new(&log)));
    }
    let options = options()?;
    let tls = tls()?;
    runtime.block_on(async {
        let sink = Sink::start().await?;
        for setting in settings() {
            if options.only.is_empty() || options.only.contains(&setting.name) {
                measure(&options, &sink, &setting, &tls).await?;
            }
        }
        Ok(())
    })
}
