//! What the kernel knows about a connection's other end: whether the process there has read what was sent. A test
//! that splits its bytes over two segments must know that the first was read before the second is sent, and a pause
//! would only hope so.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Unread octets of every established IPv4 connection, by its own end and the far one.
type Unread = HashMap<(SocketAddr, SocketAddr), u64>;

/// One reading of the table for everybody who asked before it began.
static LAST: Mutex<Option<(Instant, Unread)>> = Mutex::new(None);

/// Waits until the process at `server` has read everything that `client` has sent, or has closed.
///
/// # Panics
/// When it has not after 30 seconds.
#[track_caller]
pub fn until_read(server: SocketAddr, client: SocketAddr) {
    let asked = Instant::now();
    loop {
        if is_read(asked, server, client) {
            return;
        }
        assert!(asked.elapsed() < Duration::from_secs(30), "{server} does not read what {client} sent");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn is_read(asked: Instant, server: SocketAddr, client: SocketAddr) -> bool {
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    // A picture from before the question does not hold what was just sent; of newer ones, one a millisecond will do.
    let old = last.as_ref().is_none_or(|(taken, _)| *taken < asked || now - *taken > Duration::from_millis(1));
    if old {
        *last = Some((now, table()));
    }
    last.as_ref().is_some_and(|(_, unread)| unread.get(&(server, client)).copied().unwrap_or(0) == 0)
}

/// Reads `/proc/net/tcp`.
fn table() -> Unread {
    let text = std::fs::read_to_string("/proc/net/tcp").unwrap();
    text.lines().skip(1).filter_map(row).collect()
}

/// `sl local_address rem_address st tx_queue:rx_queue …`, addresses as hexadecimal words in the machine's order.
fn row(line: &str) -> Option<((SocketAddr, SocketAddr), u64)> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (local, remote, state, queues) = (words.next()?, words.next()?, words.next()?, words.next()?);
    // 01 is ESTABLISHED, 08 CLOSE_WAIT: the far end has sent its FIN behind what may still be unread.
    if !matches!(state, "01" | "08") {
        return None;
    }
    let unread = u64::from_str_radix(queues.split_once(':')?.1, 16).ok()?;
    Some(((address(local)?, address(remote)?), unread))
}

fn address(word: &str) -> Option<SocketAddr> {
    let (host, port) = word.split_once(':')?;
    let host = Ipv4Addr::from(u32::from_str_radix(host, 16).ok()?.to_ne_bytes());
    Some(SocketAddr::from((host, u16::from_str_radix(port, 16).ok()?)))
}
