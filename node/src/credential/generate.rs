//! Passwords that the cluster makes, so that people can type them: on a keyboard, or on a printer that has only digits.
//! Pure: the randomness is passed in.

use std::fmt;
use std::str::FromStr;

/// The fewest characters of a generated password.
pub const GENERATED_LENGTH_MIN: usize = 8;
/// The most; argon2 would take more, a display of two lines would not.
pub const GENERATED_LENGTH_MAX: usize = 64;
/// Random bytes that one password takes: eight for each character, so that what the division leaves uneven is below
/// 2 to the -57.
pub const GENERATED_RANDOM_BYTES: usize = GENERATED_LENGTH_MAX * 8;
/// What a password has unless somebody asks for less.
const BITS_WANTED: f64 = 80.0;
/// Below this a password is a number that can be guessed online in years rather than ages: eight digits have 26.
const BITS_MIN: f64 = 26.0;
/// Below this it is said.
const BITS_ADVISED: f64 = 60.0;

/// What a generated password is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Alphabet {
    /// Lower case and digits without those that look like another on a display: no i, l, o, 0, 1.
    #[default]
    Readable,
    /// Lower-case letters without i, l and o.
    Letters,
    /// Digits.
    Digits,
    /// Upper and lower case and digits, without look-alikes.
    Mixed,
    /// 0 to 9 and a to f.
    Hex,
}

/// A generated password's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    alphabet: Alphabet,
    length: usize,
}

/// Why a password cannot be made so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecipeError {
    /// Not an alphabet.
    #[error("{0:?} is not an alphabet; known are readable, letters, digits, mixed, hex")]
    Alphabet(String),
    /// Too short or too long.
    #[error("a generated password has {GENERATED_LENGTH_MIN} to {GENERATED_LENGTH_MAX} characters, not {0}")]
    Length(usize),
    /// Too easy to guess.
    #[error("{length} characters of {alphabet} are {bits} bits, too few: at least {BITS_MIN} are needed")]
    Bits {
        /// How many characters.
        length: usize,
        /// Of which.
        alphabet: Alphabet,
        /// What they are worth.
        bits: u32,
    },
}

impl Alphabet {
    /// Every alphabet.
    pub const ALL: [Self; 5] = [Self::Readable, Self::Letters, Self::Digits, Self::Mixed, Self::Hex];

    /// The word that people type.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Readable => "readable",
            Self::Letters => "letters",
            Self::Digits => "digits",
            Self::Mixed => "mixed",
            Self::Hex => "hex",
        }
    }

    /// Its characters, each once.
    #[must_use]
    pub fn characters(self) -> &'static [u8] {
        match self {
            Self::Readable => b"abcdefghjkmnpqrstuvwxyz23456789",
            Self::Letters => b"abcdefghjkmnpqrstuvwxyz",
            Self::Digits => b"0123456789",
            Self::Mixed => b"ABCDEFGHJKLMNPQRSTUVWXYZabcdefghjkmnpqrstuvwxyz23456789",
            Self::Hex => b"0123456789abcdef",
        }
    }

    fn bits_per_character(self) -> f64 {
        // At most 55 characters: exact in a float.
        f64::from(u32::try_from(self.characters().len()).unwrap_or(1)).log2()
    }
}

impl fmt::Display for Alphabet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Alphabet {
    type Err = RecipeError;

    fn from_str(text: &str) -> Result<Self, RecipeError> {
        let word = text.trim().to_ascii_lowercase();
        Self::ALL
            .into_iter()
            .find(|alphabet| alphabet.as_str() == word)
            .ok_or_else(|| RecipeError::Alphabet(text.to_owned()))
    }
}

impl Default for Recipe {
    fn default() -> Self {
        Self::of(Alphabet::default())
    }
}

impl Recipe {
    /// As many characters of `alphabet` as 80 bits need.
    #[must_use]
    pub fn of(alphabet: Alphabet) -> Self {
        let length = (BITS_WANTED / alphabet.bits_per_character()).ceil();
        // At most 25 characters, of the ten digits.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let length = length as usize;
        Self { alphabet, length: length.clamp(GENERATED_LENGTH_MIN, GENERATED_LENGTH_MAX) }
    }

    /// `length` characters of `alphabet`; a length of 0 is the default one.
    ///
    /// # Errors
    /// When it would be too short, too long or too easy to guess.
    pub fn try_new(alphabet: Alphabet, length: usize) -> Result<Self, RecipeError> {
        if length == 0 {
            return Ok(Self::of(alphabet));
        }
        if !(GENERATED_LENGTH_MIN..=GENERATED_LENGTH_MAX).contains(&length) {
            return Err(RecipeError::Length(length));
        }
        let recipe = Self { alphabet, length };
        if recipe.bits() < BITS_MIN {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let bits = recipe.bits() as u32;
            return Err(RecipeError::Bits { length, alphabet, bits });
        }
        Ok(recipe)
    }

    /// What its passwords are worth.
    #[must_use]
    pub fn bits(self) -> f64 {
        // At most 64 characters: exact in a float.
        f64::from(u32::try_from(self.length).unwrap_or(0)) * self.alphabet.bits_per_character()
    }

    /// What an administrator should know of it.
    #[must_use]
    pub fn warning(self) -> Option<String> {
        (self.bits() < BITS_ADVISED).then(|| {
            format!(
                "{} characters of {} are {:.0} bits: limit this credential with --source-ranges",
                self.length,
                self.alphabet,
                self.bits()
            )
        })
    }

    /// Makes a password. The bytes must come from a cryptographic source.
    #[must_use]
    pub fn generate(self, random: &[u8; GENERATED_RANDOM_BYTES]) -> String {
        let characters = self.alphabet.characters();
        random
            .chunks_exact(8)
            .take(self.length)
            .filter_map(|chunk| {
                let number = chunk.iter().fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
                let index = usize::try_from(number % characters.len() as u64).ok()?;
                characters.get(index).map(|byte| char::from(*byte))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use super::*;

    fn random(seed: u8) -> [u8; GENERATED_RANDOM_BYTES] {
        let mut bytes = [0; GENERATED_RANDOM_BYTES];
        let mut state = u32::from(seed) + 1;
        for byte in &mut bytes {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (state >> 24) as u8;
        }
        bytes
    }

    #[test]
    fn a_generated_password_has_eighty_bits_unless_less_is_asked_for() {
        for alphabet in Alphabet::ALL {
            let recipe = Recipe::of(alphabet);
            assert!(recipe.bits() >= 80.0 && recipe.bits() < 90.0, "{alphabet}: {}", recipe.bits());
            assert!(recipe.warning().is_none());
            assert_eq!(Recipe::try_new(alphabet, 0).unwrap(), recipe);
        }
        assert_eq!(Recipe::default().generate(&random(1)).len(), 17);
    }

    #[test]
    fn it_consists_of_its_alphabet_and_uses_all_of_it() {
        for alphabet in Alphabet::ALL {
            let recipe = Recipe::try_new(alphabet, 64).unwrap();
            let mut seen = BTreeSet::new();
            for seed in 0..100 {
                let password = recipe.generate(&random(seed));
                assert_eq!(password.len(), 64);
                seen.extend(password.bytes());
            }
            let wanted: BTreeSet<u8> = alphabet.characters().iter().copied().collect();
            assert_eq!(seen, wanted, "{alphabet}");
            assert_eq!(wanted.len(), alphabet.characters().len(), "{alphabet} names a character twice");
        }
    }

    #[test]
    fn no_look_alikes_stand_in_what_people_read() {
        for alphabet in [Alphabet::Readable, Alphabet::Letters, Alphabet::Mixed] {
            for bad in b"il1o0IO" {
                assert!(!alphabet.characters().contains(bad), "{alphabet}: {}", char::from(*bad));
            }
        }
    }

    #[test]
    fn each_random_byte_changes_the_password() {
        let recipe = Recipe::try_new(Alphabet::Readable, 64).unwrap();
        let base = recipe.generate(&random(1));
        for place in 0..GENERATED_RANDOM_BYTES {
            let mut changed = random(1);
            changed[place] ^= 1;
            assert_ne!(recipe.generate(&changed), base, "{place}");
        }
    }

    #[test]
    fn what_can_be_guessed_is_refused_and_what_is_weak_is_said() {
        assert_eq!(Recipe::try_new(Alphabet::Digits, 7), Err(RecipeError::Length(7)));
        assert_eq!(Recipe::try_new(Alphabet::Mixed, 65), Err(RecipeError::Length(65)));
        let pin = Recipe::try_new(Alphabet::Digits, 8).unwrap();
        assert!(pin.warning().unwrap().contains("27 bits"), "{:?}", pin.warning());
        assert_eq!("READABLE".parse(), Ok(Alphabet::Readable));
        assert!("emoji".parse::<Alphabet>().is_err());
    }
}
