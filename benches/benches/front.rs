//! The front beside HAProxy (send-proxy-v2, splice), nginx `stream` and a bare splice loop, alternating, medians:
//! `cargo build --release && cargo bench -p posthouse-benches --bench front`, with Debian's packages haproxy, nginx and
//! libnginx-mod-stream. `-- --rounds 5` chooses.

use std::io::{Error, Result};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use posthouse_benches::proxy::backend::Backend;
use posthouse_benches::proxy::bare;
use posthouse_benches::proxy::devices::{connections, held, percentile, round_trips, streams};
use posthouse_benches::proxy::proxies::{self, Proxy};
use posthouse_benches::relay::process;

/// Length of one run.
const RUN: Duration = Duration::from_secs(3);
const AT_ONCE: usize = 64;
const STREAMS: usize = 4;
const HELD: usize = 4_500;
const ROUND_TRIPS: usize = 20_000;

/// Figures of one proxy, one entry for each round.
#[derive(Default)]
struct Figures {
    per_second: Vec<f64>,
    cpu_us: Vec<f64>,
    banner_p99_ms: Vec<f64>,
    gigabytes: Vec<f64>,
    cpu_per_gigabyte: Vec<f64>,
    round_trip_us: Vec<f64>,
    idle_bytes: Vec<f64>,
    /// With one backend killed and found dead.
    killed_p99_ms: Vec<f64>,
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

async fn round(proxy: &Proxy, figures: &mut Figures) -> Result<()> {
    let before = process::cpu(proxy.pid);
    let began = Instant::now();
    let (count, times) = connections(proxy.address, AT_ONCE, RUN).await?;
    let took = began.elapsed();
    let cpu = process::cpu(proxy.pid) - before;
    figures.per_second.push(count as f64 / seconds(took));
    figures.cpu_us.push(seconds(cpu) * 1e6 / count as f64);
    figures.banner_p99_ms.push(seconds(percentile(&times, 0.99)) * 1e3);

    let before = process::cpu(proxy.pid);
    let began = Instant::now();
    let octets = streams(proxy.address, STREAMS, RUN).await? as f64 / 1e9;
    figures.gigabytes.push(octets / seconds(began.elapsed()));
    figures.cpu_per_gigabyte.push(seconds(process::cpu(proxy.pid) - before) / octets);

    let times = round_trips(proxy.address, ROUND_TRIPS).await?;
    figures.round_trip_us.push(seconds(percentile(&times, 0.5)) * 1e6);
    Ok(())
}

async fn idle(proxy: &Proxy, figures: &mut Figures) -> Result<()> {
    let before = process::proportional(proxy.pid);
    let open = held(proxy.address, HELD).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = process::proportional(proxy.pid);
    figures.idle_bytes.push(after.saturating_sub(before) as f64 / HELD as f64);
    drop(open);
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(())
}

fn fresh(name: &str) -> Result<PathBuf> {
    let dir = std::env::temp_dir().join("posthouse-bench-front").join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

async fn measure(rounds: usize) -> Result<()> {
    let any = || "127.0.0.1:0".parse().map_err(Error::other);
    let with_header = [Backend::start(any()?, true).await?, Backend::start(any()?, true).await?];
    let without = Backend::start(any()?, false).await?;
    let backends = with_header.each_ref().map(|backend| backend.address);
    let start = tokio::task::spawn_blocking(move || -> Result<Vec<Proxy>> {
        Ok(vec![
            proxies::front(&fresh("posthouse")?, &backends)?,
            proxies::haproxy(&fresh("haproxy")?, &backends)?,
            proxies::nginx(&fresh("nginx")?, &backends)?,
            proxies::bare(without.address)?,
        ])
    });
    let proxies = start.await.map_err(Error::other)??;
    let mut all: Vec<Figures> = proxies.iter().map(|_| Figures::default()).collect();
    let mut direct = Vec::new();
    for number in 0..rounds {
        for place in 0..proxies.len() {
            let at = (place + number) % proxies.len();
            round(&proxies[at], &mut all[at]).await?;
        }
        direct.push(seconds(percentile(&round_trips(without.address, ROUND_TRIPS).await?, 0.5)) * 1e6);
    }
    // Memory last, and each proxy in its turn: pages that were used once are not given back.
    for number in 0..rounds.min(3) {
        for place in 0..3 {
            let at = (place + number) % 3;
            idle(&proxies[at], &mut all[at]).await?;
        }
    }
    with_header[1].kill();
    tokio::time::sleep(Duration::from_secs(3)).await;
    for number in 0..rounds {
        for place in 0..3 {
            let at = (place + number) % 3;
            let (_, times) = connections(proxies[at].address, AT_ONCE, RUN).await?;
            all[at].killed_p99_ms.push(seconds(percentile(&times, 0.99)) * 1e3);
        }
    }
    show(&proxies, &all, median(&direct));
    Ok(())
}

fn show(proxies: &[Proxy], all: &[Figures], direct_us: f64) {
    println!(
        "{:<10} {:>8} {:>9} {:>11} {:>8} {:>9} {:>12} {:>10} {:>13}",
        "", "conn/s", "cpu us/c", "banner p99", "GB/s", "cpu s/GB", "added rt us", "idle PSS B", "killed p99 ms"
    );
    for (proxy, of) in proxies.iter().zip(all) {
        println!(
            "{:<10} {:>8.0} {:>9.1} {:>8.2} ms {:>8.2} {:>9.3} {:>12.1} {:>10.0} {:>13.2}",
            proxy.name,
            median(&of.per_second),
            median(&of.cpu_us),
            median(&of.banner_p99_ms),
            median(&of.gigabytes),
            median(&of.cpu_per_gigabyte),
            median(&of.round_trip_us) - direct_us,
            median(&of.idle_bytes),
            median(&of.killed_p99_ms),
        );
    }
    let [ours, haproxy, nginx, bare] = all else { return };
    let better = |figure: fn(&Figures) -> &Vec<f64>, lower: bool| {
        let (a, b) = (median(figure(haproxy)), median(figure(nginx)));
        if lower { a.min(b) } else { a.max(b) }
    };
    println!(
        "cpu per connection: {:.2} x the better peer (goal 1.1)",
        median(&ours.cpu_us) / better(|of| &of.cpu_us, true)
    );
    println!(
        "connections/s: {:.2} x the better peer (goal 0.95)",
        median(&ours.per_second) / better(|of| &of.per_second, false)
    );
    println!(
        "streams: {:.2} x HAProxy (goal 1.2), {:.2} x the bare loop (goal 0.9)",
        median(&ours.gigabytes) / median(&haproxy.gigabytes),
        median(&ours.gigabytes) / median(&bare.gigabytes)
    );
    println!(
        "added round trip: {:.2} x HAProxy (goal 1.0)",
        (median(&ours.round_trip_us) - direct_us) / (median(&haproxy.round_trip_us) - direct_us)
    );
    println!("idle PSS: {:.2} x HAProxy (goal 0.6)", median(&ours.idle_bytes) / median(&haproxy.idle_bytes));
    println!(
        "banner p99 with a backend killed: {:.2} x healthy (goal 1.2)",
        median(&ours.killed_p99_ms) / median(&ours.banner_p99_ms)
    );
}

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let address = |word: Option<String>| word.unwrap_or_default().parse::<std::net::SocketAddr>().map_err(Error::other);
    let mut rounds = 5;
    match words.next().as_deref() {
        Some("--bare") => return bare::serve(address(words.next())?, address(words.next())?),
        Some("--rounds") => rounds = words.next().unwrap_or_default().parse().map_err(Error::other)?,
        Some(word) => return Err(Error::other(format!("{word}: --rounds N"))),
        None => {}
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised)?;
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(measure(rounds))
}
