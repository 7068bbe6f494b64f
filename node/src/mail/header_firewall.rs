//! What a letter's header may bring in from outside. Exchange's header firewall: fields by which its servers talk to each
//! other are nobody else's to write, and `Received` and `Resent-*` stay only with the right to keep them. A letter is
//! counted against loops before anything is taken away, and what is taken away takes its folded lines along.

/// What was taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stripped {
    /// `X-MS-Exchange-Organization-*` and `X-MS-Exchange-Forest-*`.
    pub organization: u32,
    /// `Received` and `Resent-*`.
    pub routing: u32,
}

/// Prefixes, in lower case, of fields that come from nobody outside.
const ORGANIZATION: [&[u8]; 2] = [b"x-ms-exchange-organization-", b"x-ms-exchange-forest-"];

/// Takes away from `header`, a block of whole lines, what may not stay. `keep_routing` is the right
/// `accept_headers_routing`.
#[must_use]
pub fn strip(header: Vec<u8>, keep_routing: bool) -> (Vec<u8>, Stripped) {
    let mut stripped = Stripped::default();
    for field in fields(&header) {
        match field_kind(field) {
            Kind::Organization => stripped.organization += 1,
            Kind::Routing if !keep_routing => stripped.routing += 1,
            Kind::Routing | Kind::Other => {}
        }
    }
    // Nearly every letter: nothing to do, nothing copied.
    if stripped == Stripped::default() {
        return (header, stripped);
    }
    let stays = |field: &&[u8]| match field_kind(field) {
        Kind::Organization => false,
        Kind::Routing => keep_routing,
        Kind::Other => true,
    };
    let kept: Vec<&[u8]> = fields(&header).filter(stays).collect();
    (kept.concat(), stripped)
}

/// How many `Received` fields say that the letter was received by one of us: `is_ours` is asked about the name behind
/// `by`, as it is written (RFC 5321 §4.4).
#[must_use]
pub fn local_hops(header: &[u8], is_ours: impl Fn(&str) -> bool) -> u32 {
    let received = fields(header).filter(|field| name_of(field).eq_ignore_ascii_case(b"received"));
    let ours = received.filter(|field| received_by(field).is_some_and(&is_ours));
    u32::try_from(ours.count()).unwrap_or(u32::MAX)
}

enum Kind {
    Organization,
    Routing,
    Other,
}

fn field_kind(field: &[u8]) -> Kind {
    let name = name_of(field);
    let begins = |prefix: &[u8]| name.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix));
    if ORGANIZATION.into_iter().any(begins) {
        Kind::Organization
    } else if name.eq_ignore_ascii_case(b"received") || begins(b"resent-") {
        Kind::Routing
    } else {
        Kind::Other
    }
}

/// The name of a field, without the white space that obsolete syntax has before the colon (RFC 5322 §4.5).
fn name_of(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == b':').unwrap_or(0);
    field[..end].trim_ascii_end()
}

/// The word behind `by`, outside comments.
fn received_by(field: &[u8]) -> Option<&str> {
    let value = &field[field.iter().position(|byte| *byte == b':')? + 1..];
    let mut depth = 0_u32;
    let mut words = value.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        let is_by = depth == 0 && word.eq_ignore_ascii_case(b"by");
        for byte in word {
            match byte {
                b'(' => depth = depth.saturating_add(1),
                b')' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        if is_by {
            let name = words.next()?;
            let end = name.iter().position(|byte| matches!(byte, b'(' | b';')).unwrap_or(name.len());
            return std::str::from_utf8(&name[..end]).ok();
        }
    }
    None
}

/// The fields, each with its folded lines and line ends.
fn fields(header: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = header;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut end = line_end(rest);
        while matches!(rest.get(end), Some(b' ' | b'\t')) {
            end += line_end(&rest[end..]);
        }
        let (field, tail) = rest.split_at(end);
        rest = tail;
        Some(field)
    })
}

fn line_end(bytes: &[u8]) -> usize {
    bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const HEADER: &str = "Received: from a\r\n\tby relay.example; x\r\nreceived : from (by relay.example) c\r\n by \
        MX.Other.Example(x)\r\nX-MS-Exchange-Organization-AuthAs: Internal\r\n\tfolded\r\nSubject: one\r\n two\r\n\
        x-ms-exchange-forest-x: y\r\nResent-From: <a@b>\r\nX-MS-Exchange-CrossTenant-Id: stays\r\nX-Received: stays\r\n\r\n";

    fn names(header: &[u8]) -> Vec<String> {
        fields(header).map(|field| String::from_utf8(name_of(field).to_vec()).unwrap()).collect()
    }

    #[test]
    fn internal_fields_never_come_in_and_routing_fields_only_with_the_right() {
        let (kept, stripped) = strip(HEADER.into(), true);
        assert_eq!(stripped, Stripped { organization: 2, routing: 0 });
        let all = ["Received", "received", "Subject", "Resent-From", "X-MS-Exchange-CrossTenant-Id", "X-Received", ""];
        assert_eq!(names(&kept), all);
        let (kept, stripped) = strip(HEADER.into(), false);
        assert_eq!(stripped, Stripped { organization: 2, routing: 3 });
        assert_eq!(
            String::from_utf8(kept).unwrap(),
            "Subject: one\r\n two\r\nX-MS-Exchange-CrossTenant-Id: stays\r\nX-Received: stays\r\n\r\n"
        );
    }

    #[test]
    fn a_header_of_nothing_but_stripped_fields_leaves_its_empty_line() {
        let (kept, _) = strip(b"Received: x\r\n\r\n".to_vec(), false);
        assert_eq!(kept, b"\r\n");
    }

    #[test]
    fn local_hops_are_those_that_name_us_behind_by() {
        let ours = |name: &str| name.eq_ignore_ascii_case("relay.example");
        assert_eq!(local_hops(HEADER.as_bytes(), ours), 1);
        assert_eq!(local_hops(HEADER.as_bytes(), |name| name == "MX.Other.Example"), 1);
        assert_eq!(local_hops(b"Received: by\r\n\r\n", |_| true), 0);
        assert_eq!(local_hops(b"Received: from relay.example by x; y\r\nX-By: by relay.example\r\n\r\n", ours), 0);
    }

    proptest! {
        #[test]
        fn nothing_but_whole_fields_is_taken_away(
            lines in proptest::collection::vec("(Received|Resent-To|X-MS-Exchange-Forest-A|Subject|\t|): [a-z]{0,3}", 0..12),
            keep: bool,
        ) {
            let header: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
            let before: Vec<Vec<u8>> = fields(header.as_bytes()).map(<[u8]>::to_vec).collect();
            let (kept, stripped) = strip(header.into_bytes(), keep);
            let after: Vec<Vec<u8>> = fields(&kept).map(<[u8]>::to_vec).collect();
            let gone = usize::try_from(stripped.organization + stripped.routing).unwrap();
            prop_assert_eq!(before.len(), after.len() + gone);
            prop_assert_eq!(strip(kept.clone(), keep), (kept, Stripped::default()));
        }

        #[test]
        fn no_bytes_panic(header in proptest::collection::vec(any::<u8>(), 0..200), keep: bool) {
            let _ = local_hops(&header, |_| true);
            let _ = strip(header, keep);
        }
    }
}
