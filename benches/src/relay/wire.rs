//! Lines and letters cut out of what a socket gave: shared by sink and reference, so that both cost the same.

use memchr::{memchr, memmem};

/// The next line with its LF, if it is whole.
pub(super) fn line(bytes: &[u8]) -> Option<usize> {
    memchr(b'\n', bytes).map(|at| at + 1)
}

/// Where mail data ends that begins at the start of `bytes`: its length and that of what ends it.
pub(super) fn end_of_data(bytes: &[u8], looked_at: usize) -> Option<(usize, usize)> {
    // The end may straddle two reads.
    let from = looked_at.saturating_sub(4);
    memmem::find(&bytes[from..], b"\r\n.\r\n").map(|at| (from + at + 2, 3))
}
