//! Chance that can be had again: numbers from a seed that is printed.

/// xorshift64.
pub struct Dice(u64);

impl Dice {
    /// A seed of the clock's, or the one in `POSTHOUSE_SEED`, printed with the name of the test.
    pub fn seeded(test: &str) -> Self {
        let given = std::env::var("POSTHOUSE_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
        println!("{test}: seed {seed} (POSTHOUSE_SEED={seed} rolls the same again)");
        Self::new(seed)
    }

    /// The numbers of one seed.
    pub fn new(seed: u64) -> Self {
        // Nothing but zeros comes from zero; neighbouring seeds begin far apart.
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `sides`.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // The upper bits are the better ones.
        (self.0 >> 16) % sides
    }

    /// One of these.
    pub fn one_of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.roll(choices.len() as u64) as usize]
    }
}

/// Whether the whole of a long test is wanted: `POSTHOUSE_TEST_FULL=1`. The everyday run does fewer of the same.
pub fn is_full() -> bool {
    std::env::var_os("POSTHOUSE_TEST_FULL").is_some_and(|value| value == "1")
}
