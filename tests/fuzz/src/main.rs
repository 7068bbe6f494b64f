//! The long run: `posthouse-fuzz [inputs] [seed] [target…]`. Prints what each target was fed and how fast.
#![forbid(unsafe_code)]

use std::time::Instant;

use posthouse_fuzz::{entry::TARGETS, mutate};

fn main() {
    let mut words = std::env::args().skip(1);
    let mut number = |default: u64| words.next().map_or(default, |word| word.parse().expect("a number"));
    let (inputs, seed) = (number(1_000_000), number(1));
    let wanted: Vec<String> = words.collect();
    for target in TARGETS.iter().filter(|target| wanted.is_empty() || wanted.iter().any(|name| name == target.name)) {
        let began = Instant::now();
        mutate::run(target, seed, inputs);
        let seconds = began.elapsed().as_secs_f64();
        println!("{}: {inputs} inputs with seed {seed}, no panic, {seconds:.1} s", target.name);
    }
}
