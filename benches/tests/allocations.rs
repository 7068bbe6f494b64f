//! What a session costs in allocations: nothing for a command that is accepted, once its memory is warm. Addresses whose
//! local part or domain is longer than 24 octets take memory of their own.

use posthouse_benches::session::{COMMANDS, Dialogue, TRANSACTION, relay};

/// Allocations of `rounds` transactions, every command in a piece of its own or all in one.
fn allocations(rounds: usize, one_by_one: bool) -> u64 {
    let connector = relay();
    let mut dialogue = Dialogue::begin(&connector);
    let pieces: Vec<&str> = if one_by_one { TRANSACTION.split_inclusive('\n').collect() } else { vec![TRANSACTION] };
    let mut converse = |rounds: usize| {
        let mut accepted = 0;
        for _ in 0..rounds {
            accepted += pieces.iter().map(|piece| dialogue.say(piece.as_bytes())).sum::<usize>();
        }
        assert_eq!(accepted, rounds * COMMANDS, "not every command was accepted");
    };
    converse(10);
    allocation_counter::measure(|| converse(rounds)).count_total
}

#[test]
fn a_command_that_is_accepted_allocates_nothing() {
    assert_eq!(allocations(1000, true), 0, "one command at a time");
    assert_eq!(allocations(1000, false), 0, "pipelined");
}

#[test]
fn the_counter_counts() {
    assert!(allocation_counter::measure(|| drop(vec![0_u8; 100])).count_total > 0);
}
