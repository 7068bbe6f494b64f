//! Random octets with a seed that is printed: seeds of a target, cut, doubled, spliced and sprinkled with words that
//! protocols are made of. Without coverage, so it finds what is shallow; `cargo fuzz` looks deeper.

use super::entry::Target;

/// What parsers look for.
const WORDS: [&[u8]; 40] = [
    b"\r\n",
    b"\r",
    b"\n",
    b"\0",
    b".",
    b"\r\n.\r\n",
    b"\n.\n",
    b"\r\n.\n",
    b" ",
    b"<",
    b">",
    b"@",
    b"\"",
    b"\\",
    b":",
    b"=",
    b",",
    b"+",
    b"BDAT ",
    b" LAST\r\n",
    b"DATA\r\n",
    b"RSET\r\n",
    b"MAIL FROM:<a@b.test>\r\n",
    b"RCPT TO:<c@d.test>\r\n",
    b"QUIT\r\n",
    b"STARTTLS\r\n",
    b"AUTH ",
    b"*\r\n",
    b"0",
    b"18446744073709551615",
    b"-1",
    b"[IPv6:",
    b"\xff",
    b"\xc3\xbc",
    b"\xe2\x80\xa8",
    b"xn--",
    b"PROXY ",
    b"\r\n\r\n\0\r\nQUIT\n",
    b"Received: ",
    b"\t",
];

/// The longest input.
const INPUT_MAX: usize = 2048;

/// SplitMix64: small, and the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`, which is not 0.
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap_or(0)
    }
}

/// One input.
fn input(random: &mut Random, seeds: &[&[u8]]) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].to_vec();
    for _ in 0..random.below(8) {
        let at = random.below(bytes.len() + 1);
        match random.below(7) {
            0 => {
                let word = WORDS[random.below(WORDS.len())];
                bytes.splice(at..at, word.iter().copied());
            }
            1 => bytes.truncate(at),
            2 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            3 if at < bytes.len() => bytes[at] = random.next().to_le_bytes()[0],
            4 => {
                let end = at + random.below(bytes.len() - at + 1);
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            5 => {
                let other = seeds[random.below(seeds.len())];
                let from = random.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            _ => {
                let end = at + random.below(bytes.len() - at + 1);
                bytes.drain(at..end);
            }
        }
        bytes.truncate(INPUT_MAX);
    }
    bytes
}

/// Feeds a target. Panics with the target's words; the input that did it is printed first.
pub fn run(target: &Target, seed: u64, inputs: u64) {
    let mut random = Random::new(seed);
    for number in 0..inputs {
        let bytes = input(&mut random, target.seeds);
        let fed = std::panic::catch_unwind(|| (target.run)(&bytes));
        if let Err(cause) = fed {
            eprintln!("target {} seed {seed} input {number}: {}", target.name, bytes.escape_ascii());
            std::panic::resume_unwind(cause);
        }
    }
}
