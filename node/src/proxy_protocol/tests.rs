#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use proxy_protocol_rs::HeaderBuilder;

use super::*;

const NOW: i64 = 1_800_000_000_000;

fn header(bytes: &[u8]) -> (Header, usize) {
    match parse(bytes) {
        Parsed::Header { header, consumed } => (header, consumed),
        other => panic!("{:?} gives {other:?}", String::from_utf8_lossy(bytes)),
    }
}

fn refusal(bytes: &[u8]) -> HeaderError {
    match parse(bytes) {
        Parsed::Invalid(error) => error,
        other => panic!("{:?} gives {other:?}", String::from_utf8_lossy(bytes)),
    }
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn key() -> FrontKey {
    FrontKey { id: "f1-1".to_owned(), front: "f1".to_owned(), key: [7; 32] }
}

fn facts(node: &str) -> HeaderFacts<'_> {
    HeaderFacts {
        node,
        source: addr("10.1.2.3:40000"),
        destination: addr("10.0.0.25:25"),
        service_port: 25,
        time_ms: NOW,
        nonce: [9; 16],
        unique_id: "0A1B2C3D4E5F6071",
        local: false,
        deep_probe: false,
        stale: false,
    }
}

fn check(bytes: &[u8], node: &str, now_ms: i64) -> Result<VerifiedFront, SignatureError> {
    let (header, consumed) = header(bytes);
    verify(&header, &bytes[..consumed], |id| (id == "f1-1").then(key), node, now_ms)
}

#[test]
fn v1_lines_give_the_devices_address() {
    let (header, consumed) = header(b"PROXY TCP4 10.1.2.3 10.0.0.25 40000 25\r\nEHLO x\r\n");
    assert_eq!(header.source, Some(addr("10.1.2.3:40000")));
    assert_eq!(header.destination, Some(addr("10.0.0.25:25")));
    assert_eq!((header.version, header.command, consumed), (Version::V1, Command::Proxy, 40));
}

#[test]
fn v1_unknown_is_the_sender_itself() {
    for line in ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN ::1 ::1 65535 65535\r\n"] {
        let (header, consumed) = header(line.as_bytes());
        assert_eq!((header.command, header.source, consumed), (Command::Local, None, line.len()));
    }
}

#[test]
fn mapped_ipv6_is_ipv4() {
    let (v1, _) = header(b"PROXY TCP6 ::ffff:10.1.2.3 2001:db8::1 40000 25\r\n");
    assert_eq!(v1.source, Some(addr("10.1.2.3:40000")));
    assert_eq!(v1.destination, Some(addr("[2001:db8::1]:25")));
    let v2 = HeaderBuilder::v2_proxy(addr("[::ffff:10.1.2.3]:1"), addr("[::ffff:10.0.0.1]:25")).build();
    assert_eq!(header(&v2).0.source, Some(addr("10.1.2.3:1")));
}

#[test]
fn what_can_never_be_a_v1_line_is_refused() {
    let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
    let endless = format!("PROXY TCP4 {}", "1".repeat(96));
    let cases: &[&str] = &[
        "PROXY \n",
        "PROXY\r\n",
        "PROXYjunk",
        "PROXYTCP4 10.1.2.3 10.0.0.25 1 25\r\n",
        "PROXY SOMETHING\r\n",
        "PROXY \r\n",
        "PROXY TCP4\r\n",
        "PROXY TCP4 10.1.2.3 10.0.0.25 1 25\n",
        "PROXY TCP4 10.1.2.3 10.0.0.25 1 25\rx",
        "PROXY TCP4 2001:db8::1 2001:db8::2 1 25\r\n",
        "PROXY TCP4 ::ffff:10.1.2.3 ::ffff:10.0.0.25 1 25\r\n",
        "PROXY TCP6 10.1.2.3 10.0.0.25 1 25\r\n",
        "PROXY TCP6 fe80::1%eth0 fe80::2 1 25\r\n",
        "PROXY TCP4 10.1.2.3 10.0.0.25 65536 25\r\n",
        "PROXY TCP4 10.1.2.3 10.0.0.25 +1 25\r\n",
        "PROXY TCP4 10.1.2.3 10.0.0.25 1 +25\r\n",
        "PROXY TCP4 10.1.2.3 10.0.0.25 -1 25\r\n",
        "PROXY TCP4 10.1.2.3 10.0.0.25 01 25\r\n",
        "PROXY TCP4 10.1.2.3 10.0.0.25 1 025\r\n",
        "PROXY TCP4 10.1.2.3 10.0.0.25 00 25\r\n",
        "PROXY TCP4 10.1.2.3 10.0.0.25 1 \r\n",
        "PROXY TCP4 10.1.2.3 10.0.0.25  25\r\n",
        "PROXY TCP4 10.1.2.3 10.0.0.25 0x1 25\r\n",
        "PROXY TCP4 10.1.2.3 10.0.0.25 1\r\n",
        "PROXY TCP4 10.1.2.3 10.0.0.25 1 25 extra\r\n",
        "PROXY TCP4  10.1.2.3 10.0.0.25 1 25\r\n",
        "PROXY TCP4 10.1.2.3 10.0.0.25 1 25 \r\n",
        "PROXY TCP4 010.1.2.3 10.0.0.25 1 25\r\n",
        "PROXY TCP4 10.1.2 10.0.0.25 1 25\r\n",
        "PROXY TCP4 10.1.2.256 10.0.0.25 1 25\r\n",
        "PROXY tcp4 10.1.2.3 10.0.0.25 1 25\r\n",
        "PROXY UDP4 10.1.2.3 10.0.0.25 1 25\r\n",
        "PROXY UNKNOWNX\r\n",
        "proxy TCP4 10.1.2.3 10.0.0.25 1 25\r\n",
        " PROXY TCP4 10.1.2.3 10.0.0.25 1 25\r\n",
        "PROXY\tTCP4 10.1.2.3 10.0.0.25 1 25\r\n",
        "EHLO printer\r\n",
        "E",
        "\r\nEHLO",
        "\0",
        &long,
        &endless,
    ];
    for case in cases {
        refusal(case.as_bytes());
    }
}

#[test]
fn the_longest_v1_line_is_accepted_and_one_byte_more_is_not() {
    let fits = format!("PROXY UNKNOWN {}\r\n", "x".repeat(91));
    assert_eq!(fits.len(), 107);
    assert_eq!(header(fits.as_bytes()).1, 107);
    assert_eq!(refusal(fits.replace("\r\n", "x\r\n").as_bytes()), HeaderError::TooLong);
}

#[test]
fn every_prefix_of_a_header_is_incomplete() {
    let v2 = build_signed(&key(), &facts("n1"));
    let local = build_signed(&key(), &HeaderFacts { local: true, ..facts("n1") });
    let lines: [&[u8]; 6] = [
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        b"PROXY TCP6 ::ffff:10.1.2.3 2001:db8::1 40000 25\r\n",
        b"PROXY UNKNOWN\r\n",
        &HeaderBuilder::v2_local().build(),
        &v2,
        &local,
    ];
    for whole in lines {
        for end in 0..whole.len() {
            assert!(matches!(parse(&whole[..end]), Parsed::Incomplete), "{end} of {whole:02x?}");
        }
        assert_eq!(header(whole).1, whole.len());
    }
}

#[test]
fn all_families_but_tcp_over_ip_are_refused() {
    let whole = HeaderBuilder::v2_proxy(addr("[2001:db8::1]:1"), addr("[2001:db8::2]:25")).with_padding(300).build();
    for family in 0..=255u8 {
        let mut bytes = whole.clone();
        bytes[13] = family;
        if family == 0x21 {
            assert_eq!(header(&bytes).0.source, Some(addr("[2001:db8::1]:1")));
        } else if family != 0x11 {
            assert_eq!(refusal(&bytes), HeaderError::Family(family));
            assert_eq!(refusal(&bytes[..16]), HeaderError::Family(family), "refused before its body arrives");
        }
    }
}

#[test]
fn all_versions_and_commands_but_two_are_refused() {
    let whole = HeaderBuilder::v2_proxy(addr("10.1.2.3:1"), addr("10.0.0.1:25")).build();
    for first in 0..=255u8 {
        let mut bytes = whole.clone();
        bytes[12] = first;
        if !matches!(first, 0x20 | 0x21) {
            refusal(&bytes);
            refusal(&bytes[..13]);
        }
    }
}

#[test]
fn local_skips_exactly_its_length_whatever_its_family() {
    for family in 1..=255u8 {
        let mut bytes = HeaderBuilder::v2_local().build();
        bytes[13] = family;
        bytes[15] = 12;
        // Read as TLVs, these bytes would be a checksum that does not fit.
        bytes.extend_from_slice(&[3, 0, 4, 1, 2, 3, 4, 3, 0, 9, 9, 9]);
        bytes.extend_from_slice(b"EHLO x\r\n");
        let (header, consumed) = header(&bytes);
        assert_eq!((header.command, header.source, consumed), (Command::Local, None, 28));
    }
}

#[test]
fn a_length_shorter_than_the_addresses_is_refused() {
    for (source, destination, needed) in
        [("10.1.2.3:1", "10.0.0.1:25", 12u8), ("[2001:db8::1]:1", "[2001:db8::2]:25", 36u8)]
    {
        for length in 0..needed {
            let mut bytes = HeaderBuilder::v2_proxy(addr(source), addr(destination)).build();
            bytes[15] = length;
            assert_eq!(refusal(&bytes), HeaderError::Length(usize::from(length)));
        }
    }
}

#[test]
fn a_huge_length_is_refused_before_it_is_read() {
    let mut bytes = HeaderBuilder::v2_proxy(addr("10.1.2.3:1"), addr("10.0.0.1:25")).build();
    bytes[14..16].copy_from_slice(&[0xff, 0xff]);
    assert_eq!(refusal(&bytes[..16]), HeaderError::TooLong);
    let most = u16::try_from(HEADER_BYTES_MAX - 16 - 12 - 3).unwrap();
    let fits = HeaderBuilder::v2_proxy(addr("10.1.2.3:1"), addr("10.0.0.1:25")).with_padding(most).build();
    assert_eq!(header(&fits).1, HEADER_BYTES_MAX);
    let one_more = HeaderBuilder::v2_proxy(addr("10.1.2.3:1"), addr("10.0.0.1:25")).with_padding(most + 1).build();
    assert_eq!(refusal(&one_more), HeaderError::TooLong);
}

#[test]
fn tlvs_end_exactly_where_the_header_does() {
    let whole = HeaderBuilder::v2_proxy(addr("10.1.2.3:1"), addr("10.0.0.1:25")).with_authority("mail.example").build();
    for shorter in 13..whole[15] {
        let mut bytes = whole.clone();
        bytes[15] = shorter;
        refusal(&bytes);
    }
    let mut followed = whole.clone();
    followed.extend_from_slice(b"EHLO x\r\n");
    assert_eq!(header(&followed).1, whole.len(), "the session's bytes are not eaten");
}

#[test]
fn a_wrong_checksum_is_refused_and_none_is_allowed() {
    let good = HeaderBuilder::v2_proxy(addr("10.1.2.3:1"), addr("10.0.0.1:25")).with_crc32c().build();
    header(&good);
    for at in 16..good.len() - 7 {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        assert_eq!(refusal(&bytes), HeaderError::Checksum);
    }
    header(&HeaderBuilder::v2_proxy(addr("10.1.2.3:1"), addr("10.0.0.1:25")).build());
}

#[test]
fn a_tlv_that_must_be_unique_is_refused_twice() {
    let twice = HeaderBuilder::v2_proxy(addr("10.1.2.3:1"), addr("10.0.0.1:25"))
        .with_unique_id("a")
        .with_unique_id("b")
        .build();
    assert_eq!(refusal(&twice), HeaderError::Repeated(5));
}

#[test]
fn a_second_header_is_the_sessions_business() {
    let mut bytes = b"PROXY TCP4 10.1.2.3 10.0.0.25 1 25\r\n".to_vec();
    let one = bytes.len();
    bytes.extend_from_slice(b"PROXY TCP4 10.9.9.9 10.0.0.25 1 25\r\n");
    let (header, consumed) = header(&bytes);
    assert_eq!((header.source, consumed), (Some(addr("10.1.2.3:1")), one));
}

#[test]
fn a_signed_header_is_believed_by_its_node() {
    let bytes = build_signed(&key(), &HeaderFacts { stale: true, ..facts("n1") });
    let (header, consumed) = header(&bytes);
    assert_eq!(consumed, bytes.len());
    assert_eq!(header.source, Some(addr("10.1.2.3:40000")));
    assert_eq!(header.unique_id.as_deref(), Some(b"0A1B2C3D4E5F6071".as_slice()));
    let front = check(&bytes, "n1", NOW + 1_000).unwrap();
    assert_eq!((front.front.as_str(), front.service_port, front.nonce), ("f1", 25, [9; 16]));
    assert!(front.stale && !front.deep_probe);
}

#[test]
fn a_signed_check_is_local_and_believed() {
    let bytes = build_signed(&key(), &HeaderFacts { local: true, deep_probe: true, ..facts("n1") });
    let (header, _) = header(&bytes);
    assert_eq!((header.command, header.source), (Command::Local, None));
    assert!(check(&bytes, "n1", NOW).unwrap().deep_probe);
}

#[test]
fn families_that_differ_survive_the_trip() {
    let bytes = build_signed(&key(), &HeaderFacts { destination: addr("[2001:db8::25]:25"), ..facts("n1") });
    let (header, _) = header(&bytes);
    assert_eq!(header.source, Some(addr("10.1.2.3:40000")));
    assert_eq!(header.destination, Some(addr("[2001:db8::25]:25")));
    check(&bytes, "n1", NOW).unwrap();
}

#[test]
fn every_flipped_bit_of_a_signed_header_is_refused() {
    for local in [false, true] {
        let good = build_signed(&key(), &HeaderFacts { local, ..facts("n1") });
        check(&good, "n1", NOW).unwrap();
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bytes = good.clone();
                bytes[at] ^= 1 << bit;
                if let Parsed::Header { header, consumed } = parse(&bytes) {
                    let verdict = verify(&header, &bytes[..consumed], |_| Some(key()), "n1", NOW);
                    assert!(verdict.is_err(), "bit {bit} of byte {at}");
                }
            }
        }
    }
}

#[test]
fn a_repaired_checksum_does_not_repair_the_signature() {
    let good = build_signed(&key(), &facts("n1"));
    let mut bytes = good.clone();
    bytes[16] ^= 1;
    let without_crc = bytes.len() - 7;
    bytes.truncate(without_crc);
    let length = u16::try_from(without_crc - 16).unwrap();
    bytes[14..16].copy_from_slice(&length.to_be_bytes());
    assert_eq!(check(&bytes, "n1", NOW), Err(SignatureError::Mismatch));
}

#[test]
fn a_header_for_another_node_key_time_or_front_is_refused() {
    let bytes = build_signed(&key(), &facts("n1"));
    assert_eq!(check(&bytes, "n2", NOW), Err(SignatureError::WrongNode("n1".to_owned())));
    assert!(matches!(check(&bytes, "n1", NOW + 60_001), Err(SignatureError::Time { off_ms: -60_001, .. })));
    assert!(matches!(check(&bytes, "n1", NOW - 60_001), Err(SignatureError::Time { off_ms: 60_001, .. })));
    let other = FrontKey { id: "f2-1".to_owned(), ..key() };
    let bytes = build_signed(&other, &facts("n1"));
    assert_eq!(check(&bytes, "n1", NOW), Err(SignatureError::UnknownKey("f2-1".to_owned())));
    let other = FrontKey { key: [8; 32], ..key() };
    assert_eq!(check(&build_signed(&other, &facts("n1")), "n1", NOW), Err(SignatureError::Mismatch));
    let other = FrontKey { front: "f2".to_owned(), ..key() };
    assert!(matches!(check(&build_signed(&other, &facts("n1")), "n1", NOW), Err(SignatureError::WrongFront { .. })));
}

#[test]
fn an_unsigned_header_is_not_a_signed_one() {
    let bytes = HeaderBuilder::v2_proxy(addr("10.1.2.3:1"), addr("10.0.0.1:25")).with_crc32c().build();
    assert_eq!(check(&bytes, "n1", NOW), Err(SignatureError::Missing));
    assert_eq!(check(b"PROXY TCP4 10.1.2.3 10.0.0.25 1 25\r\n", "n1", NOW), Err(SignatureError::Missing));
}

#[test]
fn a_key_is_never_printed() {
    assert!(!format!("{:?}", key()).contains('7'));
}

proptest! {
    #[test]
    fn no_input_panics_or_eats_more_than_there_is(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for start in [&b""[..], b"PROXY ", b"PROXY TCP4 ", V2_SIGNATURE, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00"] {
            let mut input = start.to_vec();
            input.extend_from_slice(&bytes);
            if let Parsed::Header { header, consumed } = parse(&input) {
                prop_assert!(consumed <= input.len());
                prop_assert_eq!(header.source.is_none(), header.command == Command::Local);
                let _ = verify(&header, &input[..consumed], |_| Some(key()), "n1", NOW);
            }
        }
    }

    #[test]
    fn addresses_survive_the_trip(source: std::net::IpAddr, destination: std::net::IpAddr, ports: (u16, u16)) {
        let (source, destination) = (SocketAddr::new(source, ports.0), SocketAddr::new(destination, ports.1));
        let bytes = build_signed(&key(), &HeaderFacts { source, destination, ..facts("n1") });
        let (header, _) = header(&bytes);
        prop_assert_eq!(header.source, Some(canonical(source)));
        prop_assert_eq!(header.destination, Some(canonical(destination)));
        prop_assert!(check(&bytes, "n1", NOW).is_ok());
    }
}
