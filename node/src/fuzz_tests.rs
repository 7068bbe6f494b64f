//! The short run of the fuzz targets in `tests/fuzz`: the same functions, a few thousand inputs each.

#[path = "../../tests/fuzz/src/entry.rs"]
#[expect(clippy::expect_used, unreachable_pub, reason = "compiled as a crate of its own too")]
mod entry;
#[path = "../../tests/fuzz/src/mutate.rs"]
#[expect(unreachable_pub, reason = "compiled as a crate of its own too")]
mod mutate;

/// Inputs for each target.
const INPUTS: u64 = 2000;
const SEED: u64 = 20_260_101;

#[test]
fn no_parser_breaks_its_promises_for_random_octets() {
    for target in &entry::TARGETS {
        mutate::run(target, SEED, INPUTS);
    }
}
