//! What a node holds in memory does not depend on how large a letter is.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use posthouse_tests::dialog::Dialog;
use posthouse_tests::{TestCluster, until};

const MIB: u64 = 1024 * 1024;
/// One letter.
const LETTER: u64 = 100 * MIB;
/// How far a node's resident size may rise while one passes through, once memory that is kept has been taken.
const RISE_MAX: u64 = 4 * MIB;
/// How far all of them together may raise it: memory that is kept, and the first pieces of each letter. A spool that
/// puts large letters through its memtables takes more than twice as much.
const WARM_RISE_MAX: u64 = 40 * MIB;
/// Letters that warm up, of each kind.
const WARM_UP: usize = 3;
/// What one write takes; not a divisor of anything.
const PIECE: usize = 60_007;

/// How a letter is sent.
#[derive(Clone, Copy, Debug)]
enum By {
    Data,
    Bdat,
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a resident size");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Sends one letter of [`LETTER`] octets, generated as it goes.
fn send(target: SocketAddr, by: By) {
    let mut dialog = Dialog::connect("127.0.31.7".parse().unwrap(), target).unwrap();
    dialog.stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    assert!(dialog.reply().unwrap().starts_with("220"));
    for line in ["EHLO device.example", "MAIL FROM:<scan@corp.example>", "RCPT TO:<x@partner.example>"] {
        let reply = dialog.command(line).unwrap();
        assert!(reply.starts_with("250"), "{line}: {reply}");
    }
    let header = b"Subject: large\r\n\r\n";
    let line = [&[b'x'; 76][..], b"\r\n"].concat();
    let piece: Vec<u8> = line.iter().copied().cycle().take(line.len() * (PIECE / line.len())).collect();
    let pieces = LETTER / piece.len() as u64;
    match by {
        By::Data => {
            assert!(dialog.command("DATA").unwrap().starts_with("354"));
            dialog.send(header).unwrap();
            for _ in 0..pieces {
                dialog.send(&piece).unwrap();
            }
            dialog.send(b".\r\n").unwrap();
        }
        By::Bdat => {
            // One chunk of the whole letter, as clients do that know its size.
            let size = header.len() as u64 + pieces * piece.len() as u64;
            dialog.send(format!("BDAT {size} LAST\r\n").as_bytes()).unwrap();
            dialog.send(header).unwrap();
            for _ in 0..pieces {
                dialog.send(&piece).unwrap();
            }
        }
    }
    let reply = dialog.reply().unwrap();
    assert!(reply.starts_with("250 2.6.0"), "{by:?}: {reply}");
    dialog.command("QUIT").unwrap();
}

/// Removes what the sink got: 100 MB each.
fn empty_sink(cluster: &TestCluster, letters: usize) {
    let dir = cluster.path().join("maildir/new");
    until(Duration::from_secs(120), "the sink has the letters", || {
        let files: Vec<_> = std::fs::read_dir(&dir).ok()?.filter_map(Result::ok).collect();
        (files.len() >= letters).then(|| files.iter().for_each(|file| std::fs::remove_file(file.path()).unwrap()))
    });
}

#[test]
fn a_letter_of_100_mb_does_not_raise_resident_memory() {
    let cluster = TestCluster::start();
    cluster.ctl.ok(&["connector", "set", "printers", "--max-message-size", &(2 * LETTER).to_string()]);
    let node = &cluster.nodes[0];
    let pid = cluster.procs[0].as_ref().unwrap().child.id();
    let cold = resident(pid);
    println!("resident before the first letter: {} KiB", cold / 1024);
    for _ in 0..WARM_UP {
        for by in [By::Data, By::Bdat] {
            send(node.smtp, by);
            empty_sink(&cluster, 1);
            println!("warm after {by:?}: {} KiB", resident(pid) / 1024);
        }
    }
    for by in [By::Data, By::Bdat] {
        let before = resident(pid);
        let (peak, done) = (AtomicU64::new(before), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    peak.fetch_max(resident(pid), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
            send(node.smtp, by);
            empty_sink(&cluster, 1);
            done.store(true, Ordering::Relaxed);
        });
        let rise = peak.into_inner().saturating_sub(before);
        println!("{by:?}: {} KiB before, rise {} KiB while a letter of 100 MiB passed", before / 1024, rise / 1024);
        assert!(rise <= RISE_MAX, "{by:?}: resident memory rose by {} KiB", rise / 1024);
    }
    let rise = resident(pid).saturating_sub(cold);
    assert!(rise <= WARM_RISE_MAX, "all letters together raised resident memory by {} KiB", rise / 1024);
}
