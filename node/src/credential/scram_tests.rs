//! RFC 7677's own exchange, a small client of ours for the rest, and messages that are none.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

/// RFC 7677 §3.
const RFC_CLIENT_FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
const RFC_SERVER_FIRST: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
const RFC_CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
     p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
const RFC_SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

const NONE: Binding = Binding { tls_exporter: None, plus: false };

fn keys(password: &str) -> ScramKeys {
    ScramKeys::derive(password.as_bytes(), &[7; 16]).unwrap()
}

/// What a client computes for its final message.
fn client_final(first_bare: &str, server_first: &str, channel: &[u8], password: &str) -> String {
    let field = |prefix: &str| server_first.split(',').find_map(|field| field.strip_prefix(prefix)).unwrap().to_owned();
    let salt = STANDARD.decode(field("s=")).unwrap();
    let rounds = NonZeroU32::new(field("i=").parse().unwrap()).unwrap();
    let mut salted = [0_u8; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, password.as_bytes(), &mut salted);
    let client_key = mac(&salted, b"Client Key");
    let stored = digest::digest(&digest::SHA256, client_key.as_ref());
    let without_proof = format!("c={},r={}", STANDARD.encode(channel), field("r="));
    let signature = mac(stored.as_ref(), format!("{first_bare},{server_first},{without_proof}").as_bytes());
    let proof: Vec<u8> = client_key.as_ref().iter().zip(signature.as_ref()).map(|(a, b)| a ^ b).collect();
    format!("{without_proof},p={}", STANDARD.encode(proof))
}

fn begin(gs2: &str, user: &str, told: &ScramKeys, binding: Binding) -> Result<(ScramExchange, String), ScramError> {
    let first = format!("{gs2}n={user},r=clientnonce");
    let first = ClientFirst::parse(first.as_bytes(), &binding)?;
    let (exchange, message) = first.challenge(told, binding, &[3; 18]);
    Ok((exchange, String::from_utf8(message).unwrap()))
}

#[test]
fn the_exchange_of_rfc_7677_comes_out_octet_for_octet() {
    let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    let keys = ScramKeys::derive_with(b"pencil", &salt, 4096).unwrap();
    let client = ClientFirst::parse(RFC_CLIENT_FIRST.as_bytes(), &NONE).unwrap();
    assert_eq!(client.user(), "user");
    let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".to_owned();
    let exchange = ScramExchange { client, server_first: RFC_SERVER_FIRST.to_owned(), nonce, binding: NONE };
    let (id, last) = exchange.finish(RFC_CLIENT_FINAL.as_bytes(), &keys, [(1, &keys)]).unwrap();
    assert_eq!((id, String::from_utf8(last).unwrap().as_str()), (1, RFC_SERVER_FINAL));
}

#[test]
fn the_right_password_proves_its_own_secret_and_a_wrong_one_none() {
    let (old, new) = (keys("old one"), keys("old one").derive_beside(b"new one").unwrap());
    let (exchange, first) = begin("n,,", "u", &new, NONE).unwrap();
    let answer = |password: &str| {
        let last = client_final("n=u,r=clientnonce", &first, b"n,,", password);
        exchange.finish(last.as_bytes(), &new, [(1, &old), (2, &new)]).map(|(id, _)| id)
    };
    assert_eq!(answer("old one"), Ok(1), "both secrets of a rotation are taken in one exchange");
    assert_eq!(answer("new one"), Ok(2));
    assert_eq!(answer("neither"), Err(ScramError::Proof));
}

#[test]
fn keys_under_another_salt_prove_nothing() {
    let (told, other) = (keys("pw"), ScramKeys::derive(b"pw", &[8; 16]).unwrap());
    let (exchange, first) = begin("n,,", "u", &told, NONE).unwrap();
    let last = client_final("n=u,r=clientnonce", &first, b"n,,", "pw");
    assert_eq!(exchange.finish(last.as_bytes(), &told, [(1, &other)]), Err(ScramError::Proof));
}

#[test]
fn plus_binds_the_connection_and_no_other() {
    let keys = keys("pw");
    let binding = Binding { tls_exporter: Some([9; 32]), plus: true };
    let (exchange, first) = begin("p=tls-exporter,,", "u", &keys, binding).unwrap();
    let channel = |exporter: [u8; 32]| [&b"p=tls-exporter,,"[..], &exporter].concat();
    let last = |exporter| client_final("n=u,r=clientnonce", &first, &channel(exporter), "pw");
    assert!(exchange.finish(last([9; 32]).as_bytes(), &keys, [(1, &keys)]).is_ok());
    let relayed = exchange.finish(last([8; 32]).as_bytes(), &keys, [(1, &keys)]);
    assert_eq!(relayed, Err(ScramError::Binding), "the proof of another connection");
    let without = client_final("n=u,r=clientnonce", &first, b"p=tls-exporter,,", "pw");
    assert_eq!(exchange.finish(without.as_bytes(), &keys, [(1, &keys)]), Err(ScramError::Binding));
}

#[test]
fn a_downgrade_of_the_offer_is_noticed() {
    let offered = Binding { tls_exporter: Some([9; 32]), plus: false };
    let parse = |gs2: &str, binding: &Binding| {
        ClientFirst::parse(format!("{gs2}n=u,r=x").as_bytes(), binding).map(|first| first.user)
    };
    assert_eq!(parse("y,,", &offered), Err(ScramError::Downgrade), "it can bind and was told that we cannot");
    assert_eq!(parse("y,,", &NONE), Ok("u".to_owned()));
    assert_eq!(parse("n,,", &offered), Ok("u".to_owned()), "it cannot bind");
    assert_eq!(parse("p=tls-exporter,,", &offered), Err(ScramError::Binding), "p without -PLUS");
    let plus = Binding { plus: true, ..offered };
    assert_eq!(parse("p=tls-exporter,,", &plus), Ok("u".to_owned()));
    for other in ["n,,", "y,,", "p=tls-unique,,", "p=tls-server-end-point,,"] {
        assert_eq!(parse(other, &plus), Err(ScramError::Binding), "{other}");
    }
    // The header is repeated inside the proof: changing it on the way breaks the exchange.
    let keys = keys("pw");
    let (exchange, first) = begin("n,,", "u", &keys, NONE).unwrap();
    let last = client_final("n=u,r=clientnonce", &first, b"y,,", "pw");
    assert_eq!(exchange.finish(last.as_bytes(), &keys, [(1, &keys)]), Err(ScramError::Binding));
}

#[test]
fn an_unknown_user_looks_like_a_known_one() {
    let cluster = [5_u8; 32];
    let (fake, again) = (ScramKeys::fake(&cluster, "ghost"), ScramKeys::fake(&cluster, "ghost"));
    assert_eq!(fake, again, "the same at each try, on each node");
    assert_ne!(fake.salt, ScramKeys::fake(&cluster, "ghost2").salt);
    assert_ne!(fake.salt, ScramKeys::fake(&[6; 32], "ghost").salt);
    let real = keys("pw");
    assert_eq!((fake.salt.len(), fake.iterations), (real.salt.len(), real.iterations));
    assert!(fake.is_acceptable());
    let (exchange, first) = begin("n,,", "ghost", &fake, NONE).unwrap();
    let last = client_final("n=ghost,r=clientnonce", &first, b"n,,", "pw");
    assert_eq!(exchange.finish::<u32>(last.as_bytes(), &fake, []), Err(ScramError::Proof));
    assert_eq!(exchange.finish(last.as_bytes(), &fake, [(1, &fake)]), Err(ScramError::Proof));
}

#[test]
fn messages_that_are_none_are_refused() {
    for bad in [
        "",
        "n",
        "n,",
        "n,,",
        "n,,n=u",
        "n,,r=x,n=u",
        "n,,n=,r=x",
        "n,,n=u,r=",
        "x,,n=u,r=x",
        "n,b=u,n=u,r=x",
        "n,,m=ext,n=u,r=x",
        "n,,n=u=2,r=x",
        "n,,n=u=,r=x",
        "n,,n=u\u{7},r=x",
        "n,,n=u,r=a b",
        "n,,n=u,r=\u{e9}",
        "p=,,n=u,r=x\0",
    ] {
        assert!(ClientFirst::parse(bad.as_bytes(), &NONE).is_err(), "{bad:?}");
    }
    assert!(ClientFirst::parse(b"n,,n=\xff,r=x", &NONE).is_err());
    assert!(ClientFirst::parse(format!("n,,n={},r=x", "u".repeat(4000)).as_bytes(), &NONE).is_err());
    let named = |text: &str| ClientFirst::parse(text.as_bytes(), &NONE).map(|first| first.user);
    assert_eq!(named("n,,n=a=2Cb=3Dc,r=x"), Ok("a,b=c".to_owned()));
    assert_eq!(named("n,a=u,n=u,r=x"), Ok("u".to_owned()));
    assert_eq!(named("n,a=boss,n=u,r=x"), Err(ScramError::ForeignIdentity));

    let keys = keys("pw");
    let (exchange, first) = begin("n,,", "u", &keys, NONE).unwrap();
    let good = client_final("n=u,r=clientnonce", &first, b"n,,", "pw");
    let (body, proof) = good.rsplit_once(",p=").unwrap();
    for bad in [
        String::new(),
        "p=".to_owned(),
        body.to_owned(),
        format!("{body},p="),
        format!("{body},p=AAAA"),
        format!("{body},p=!!!"),
        good.replace("c=biws", "c=!"),
        good.replace("r=clientnonce", "r=other"),
        format!("r=x,c=biws,p={proof}"),
        format!("{body},x=more,p={proof}"),
    ] {
        assert!(exchange.finish(bad.as_bytes(), &keys, [(1, &keys)]).is_err(), "{bad:?}");
    }
    assert!(exchange.finish(good.as_bytes(), &keys, [(1, &keys)]).is_ok());
}

#[test]
fn a_password_that_sasl_would_have_to_prepare_has_no_keys() {
    for bad in ["p\u{e4}ss", "a\tb", "a\u{7f}"] {
        assert_eq!(ScramKeys::derive(bad.as_bytes(), &[1; 16]), Err(HashError::NotAscii), "{bad:?}");
    }
}

#[test]
fn keys_show_nothing_and_survive_the_state() {
    let keys = keys("hunter2");
    assert!(!format!("{keys:?}").contains(&STANDARD.encode(&keys.stored_key)));
    let text = serde_json::to_string(&keys).unwrap();
    assert!(!text.contains("hunter2"));
    assert_eq!(serde_json::from_str::<ScramKeys>(&text).unwrap(), keys);
    assert!(!ScramKeys { iterations: 1, ..keys.clone() }.is_acceptable());
    assert!(!ScramKeys { iterations: u32::MAX, ..keys.clone() }.is_acceptable());
    assert!(!ScramKeys { stored_key: vec![], ..keys }.is_acceptable());
}

proptest! {
    #[test]
    fn no_message_makes_it_panic_or_log_in(first in ".{0,80}", last in prop::collection::vec(any::<u8>(), 0..200)) {
        let keys = keys("pw");
        for text in [first.clone(), format!("n,,{first}"), format!("n,,n=u,r={first}")] {
            if let Ok(client) = ClientFirst::parse(text.as_bytes(), &NONE) {
                let (exchange, _) = client.challenge(&keys, NONE, &[0; 18]);
                prop_assert!(exchange.finish(&last, &keys, [(1, &keys)]).is_err());
            }
        }
    }
}
