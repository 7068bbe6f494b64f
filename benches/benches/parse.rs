//! How many commands a session takes a second on one core: parsed, decided by the same policy as in a node, answered.
//! Beside it the plainest thing that could be done with the same octets: splitting them into lines.
//! `cargo bench -p posthouse-benches --bench parse`

use posthouse_benches::alternate;
use posthouse_benches::session::{COMMANDS, Dialogue, TRANSACTION, relay};
use posthouse_node::connector::ReceiveConnector;

/// Transactions in one run; each has [`COMMANDS`] commands.
const TRANSACTIONS: usize = 50_000;
/// What one read of a socket brings.
const READ_BYTES: usize = 16 * 1024;

/// Runs one session to its end, and answers how many commands were accepted.
fn converse(connector: &ReceiveConnector, stream: &[u8]) -> usize {
    let mut dialogue = Dialogue::begin(connector);
    stream.chunks(READ_BYTES).map(|piece| dialogue.say(piece)).sum()
}

fn main() {
    let connector = relay();
    let stream = TRANSACTION.repeat(TRANSACTIONS).into_bytes();
    let commands = TRANSACTIONS * COMMANDS;
    let accepted = converse(&connector, &stream);
    assert_eq!(accepted, commands, "not every command was accepted");
    let pair = alternate(
        || converse(&connector, &stream),
        || stream.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).filter(|line| !line.is_empty()).count(),
    );
    let rate = |time: std::time::Duration| commands as f64 / time.as_secs_f64() / 1e6;
    println!("session: parse, policy and replies of {commands} commands; medians of 9 alternating rounds");
    println!(
        "session {:.2} million commands/s, lines alone {:.2}, ratio {:.1}",
        rate(pair.ours),
        rate(pair.peer),
        pair.ratio()
    );
}
