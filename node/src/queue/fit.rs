//! A letter and a next hop that does not offer all that the letter asks for: what can be changed without loss is, and the
//! rest goes back to its sender with the reason.

use super::manager::Shared;
use crate::mail::{BodyType, EnhancedCode, Reply};
use crate::outbound::{Downgrade, Extensions};
use crate::spool::{Record, SpoolError};

/// How a letter goes to a next hop.
pub(super) enum Fit {
    /// As it is.
    AsItIs,
    /// With its 8-bit parts in quoted-printable, which makes it so many bytes.
    SevenBit(u64),
    /// Not at all.
    Refused(Reply),
}

/// Decides. Reads the letter only when the next hop is one of the few without 8BITMIME.
///
/// # Errors
/// When the letter cannot be read.
pub(super) async fn fit(shared: &Shared, record: &Record, offers: &Extensions) -> Result<Fit, SpoolError> {
    if record.body == BodyType::BinaryMime {
        // RFC 3030 §3: it may not go as lines, and turning it into base64 would need to understand all of it.
        let text = "the letter was sent as BINARYMIME, which is not passed on";
        return Ok(Fit::Refused(Reply::new(554, Some(EnhancedCode::new(5, 6, 3)), text)));
    }
    if offers.eight_bit_mime {
        return Ok(Fit::AsItIs);
    }
    let Some(letter) = shared.spool.open_letter(record.id).await? else { return Ok(Fit::AsItIs) };
    let mut reader = letter.body;
    let (mut downgrade, mut out, mut bytes, mut ascii) = (Downgrade::default(), Vec::new(), 0, true);
    let mut problem = None;
    while let Some(piece) = reader.next_chunk().await? {
        ascii &= piece.is_ascii();
        if problem.is_none() {
            problem = downgrade.add(&piece, &mut out).err();
        }
        bytes += out.len() as u64;
        out.clear();
    }
    if ascii {
        return Ok(Fit::AsItIs);
    }
    problem = problem.or_else(|| downgrade.finish(&mut out).err());
    bytes += out.len() as u64;
    Ok(match problem {
        None => Fit::SevenBit(bytes),
        Some(problem) => {
            // RFC 3463 §3.7: X.6.3, conversion required but not supported.
            let text = format!("the next hop does not offer 8BITMIME, and the letter cannot be made 7-bit: {problem}");
            Fit::Refused(Reply::new(554, Some(EnhancedCode::new(5, 6, 3)), text))
        }
    })
}
