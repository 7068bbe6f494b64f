//! A million letters that wait: how much memory they cost, and how long a node needs to start on them. Takes minutes;
//! run it with `cargo nextest run --run-ignored only -E 'test(a_million_letters)'`.

use std::process::Command;
use std::time::Instant;

use super::*;

/// The directory of the spool, for the process that opens it: the one that filled it has grown by that.
const DIR: &str = "POSTHOUSE_MILLION_DIR";
const NAME: &str = "queue::tests::million::a_million_letters_cost_bounded_memory_and_start_in_seconds";
/// What the whole process may hold resident.
const RESIDENT_MAX_MIB: u64 = 600;
/// How many letters are written at a time.
const WRITERS: usize = 256;

fn letters() -> u64 {
    std::env::var("POSTHOUSE_TEST_LETTERS").map_or(1_000_000, |text| text.parse().unwrap())
}

/// `VmRSS` or `VmHWM`, in MiB.
fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn a_million_letters_cost_bounded_memory_and_start_in_seconds() {
    if let Ok(dir) = std::env::var(DIR) {
        return measure(Path::new(&dir)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let began = Instant::now();
    fill(dir.path(), letters()).await;
    println!("{} letters written in {:?}", letters(), began.elapsed());
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--ignored", "--nocapture"])
        .env(DIR, dir.path())
        .status()
        .unwrap();
    assert!(child.success());
}

/// Letters of many senders and devices to many domains.
async fn fill(dir: &Path, letters: u64) {
    let scope = Scope::new();
    let (at, within) = (dir.to_owned(), scope.clone());
    let (spool, _) = run_blocking(move || Spool::open(&at, 1, "n1", TraceLimits::default(), &within).unwrap()).await;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS as u64 {
        let spool = spool.clone();
        writers.spawn(async move {
            for index in (writer..letters).step_by(WRITERS) {
                let path = ForwardPath::try_from(format!("user{index}@d{}.example", index % 2000)).unwrap();
                let from = ReversePath::try_from(format!("device{}@corp.example", index % 5000)).unwrap();
                let mut new = message(Envelope::new(from, [path]));
                new.source_addr = std::net::IpAddr::from([10, 1, (index / 200 % 25) as u8, (index % 200) as u8]);
                let mut append = spool.begin();
                append.write(LETTER.to_vec()).await.unwrap();
                append.commit(new).await.unwrap();
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    scope.end();
    spool.close().await;
}

async fn measure(dir: &Path) {
    let (empty, began) = (memory("VmRSS"), Instant::now());
    // Nobody takes them: they wait.
    let bench = Bench::start(dir, Vec::new(), outbound(None)).await;
    let opened = began.elapsed();
    wait("the queue knows all", || bench.queue.len() as u64 == letters()).await;
    let known = began.elapsed();
    println!(
        "resident {empty} MiB before, {} MiB with {} letters (peak {} MiB); spool opened in {opened:?}, queue ready in {known:?}",
        memory("VmRSS"),
        letters(),
        memory("VmHWM")
    );
    let all = QueueFilter { all: true, ..QueueFilter::default() };
    for (what, filter) in [
        ("summary", all.clone()),
        (
            "summary by domain",
            QueueFilter { domain: Some(Domain::parse("d7.example").unwrap()), ..QueueFilter::default() },
        ),
        (
            "summary by recipient",
            QueueFilter { recipient: Some("user7@d7.example".to_owned()), ..QueueFilter::default() },
        ),
    ] {
        let asked = Instant::now();
        let found = bench.queue.summary(&filter).await.unwrap().messages;
        println!("{what}: {found} letters in {:?}", asked.elapsed());
    }
    let (asked, listed) = (Instant::now(), bench.queue.list(&all, 100).await.unwrap());
    println!("list: {} of {} in {:?}", listed.messages.len(), listed.matched, asked.elapsed());
    // While it works on them: every attempt fails, and is written down.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let (resident, peak) = (memory("VmRSS"), memory("VmHWM"));
    println!("resident {resident} MiB after twenty seconds of attempts (peak {peak} MiB)");
    assert!(peak <= RESIDENT_MAX_MIB, "{peak} MiB");
    bench.stop().await;
}
