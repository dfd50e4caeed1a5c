//! The examples of RFC 7541 Appendix C, what must be refused, and what must hold for any list.

use std::ops::ControlFlow;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::headers::{Headers, names};

type Fields = Vec<(Vec<u8>, Vec<u8>, Option<Fault>)>;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|c| u8::from_str_radix(std::str::from_utf8(c).unwrap(), 16).unwrap()).collect()
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, HpackError> {
    let mut fields = Vec::new();
    decoder.decode(block, |field, size| {
        let (name, value, fault) = match field {
            Field::Valid(name, value) => (name.as_bytes().to_vec(), value.as_bytes().to_vec(), None),
            Field::Malformed { name, value, fault } => (name.to_vec(), value.to_vec(), Some(fault)),
        };
        assert_eq!(size, name.len() + value.len());
        fields.push((name, value, fault));
        ControlFlow::Continue(())
    })?;
    Ok(fields)
}

fn list(decoder: &mut Decoder, block: &[u8]) -> String {
    let fields = decode(decoder, block).unwrap();
    let lines: Vec<String> = fields
        .iter()
        .map(|(n, v, _)| format!("{}: {}", String::from_utf8_lossy(n), String::from_utf8_lossy(v)))
        .collect();
    lines.join("\n")
}

fn headers(fields: &[(&str, &str)]) -> Headers {
    let mut headers = Headers::new();
    for (name, value) in fields {
        headers.append(HeaderName::parse(name).unwrap(), HeaderValue::parse(Bytes::from(value.to_string())).unwrap());
    }
    headers
}

fn block(encoder: &mut Encoder, headers: &Headers) -> Vec<u8> {
    let mut out = Vec::new();
    encoder.encode(headers, &mut out);
    out
}

#[test]
fn single_fields_of_appendix_c_2_are_read() {
    for (block, field) in [
        ("400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572", "custom-key: custom-header"),
        ("040c 2f73 616d 706c 652f 7061 7468", ":path: /sample/path"),
        ("1008 7061 7373 776f 7264 0673 6563 7265 74", "password: secret"),
        ("82", ":method: GET"),
    ] {
        assert_eq!(list(&mut Decoder::default(), &hex(block)), field);
    }
}

const REQUESTS: [&str; 3] = [
    ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com",
    ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com\ncache-control: no-cache",
    ":method: GET\n:scheme: https\n:path: /index.html\n:authority: www.example.com\ncustom-key: custom-value",
];

#[test]
fn requests_of_appendix_c_3_and_c_4_are_read() {
    let plain = [
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ];
    let huffman = [
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ];
    for blocks in [plain, huffman] {
        let mut decoder = Decoder::default();
        for (block, fields) in blocks.iter().zip(REQUESTS) {
            assert_eq!(list(&mut decoder, &hex(block)), fields);
        }
    }
}

#[test]
fn responses_of_appendix_c_5_and_c_6_are_read_with_evictions() {
    let common = "cache-control: private\ndate: Mon, 21 Oct 2013 20:13:2";
    let location = "location: https://www.example.com";
    let fields = [
        format!(":status: 302\n{common}1 GMT\n{location}"),
        format!(":status: 307\n{common}1 GMT\n{location}"),
        format!(
            ":status: 200\n{common}2 GMT\n{location}\ncontent-encoding: gzip\n\
             set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"
        ),
    ];
    let plain = [
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d
         546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 666f
         6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b
         2076 6572 7369 6f6e 3d31",
    ];
    let huffman = [
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7
         8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335
         dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    ];
    for blocks in [plain, huffman] {
        let mut decoder = Decoder::new(256);
        for (block, fields) in blocks.iter().zip(&fields) {
            assert_eq!(list(&mut decoder, &hex(block)), *fields);
        }
    }
}

#[test]
fn integers_of_appendix_c_1_are_read() {
    // A size update with 1337: above the limit, so the number was read.
    let mut decoder = Decoder::new(1336);
    assert_eq!(decode(&mut decoder, &hex("3f9a0a")), Err(HpackError::TableSizeTooLarge));
    let mut decoder = Decoder::new(1337);
    assert_eq!(decode(&mut decoder, &hex("3f9a0a 82")).map(|f| f.len()), Ok(1));
}

#[test]
fn what_breaks_the_rules_is_refused() {
    for (block, error) in [
        ("80", HpackError::InvalidIndex),
        ("be", HpackError::InvalidIndex),
        ("7e 0161", HpackError::InvalidIndex),
        ("ff", HpackError::Truncated),
        ("ff80", HpackError::Truncated),
        ("ff ffffffff 0f", HpackError::IntegerOverflow),
        ("ff 8080808080 00", HpackError::IntegerOverflow),
        ("00 0161 05 61", HpackError::Truncated),
        ("00 01", HpackError::Truncated),
        ("40", HpackError::Truncated),
        ("00 0161 7f 828004", HpackError::LiteralTooLong),
        ("00 0161 81 ff", HpackError::InvalidHuffman),
        ("00 0161 82 1fff", HpackError::InvalidHuffman),
        ("00 0161 84 ffffffff", HpackError::InvalidHuffman),
        ("82 20", HpackError::MisplacedTableSizeUpdate),
        ("3f e21f", HpackError::TableSizeTooLarge),
    ] {
        assert_eq!(decode(&mut Decoder::default(), &hex(block)), Err(error), "{block}");
    }
}

#[test]
fn a_lower_limit_must_be_answered_with_a_size_update() {
    let mut decoder = Decoder::default();
    decoder.set_max_table_size(100);
    assert_eq!(decode(&mut decoder, &hex("82")), Err(HpackError::MissingTableSizeUpdate));
    let mut decoder = Decoder::default();
    decoder.set_max_table_size(100);
    assert_eq!(decode(&mut decoder, &hex("20 3f45 82")).map(|f| f.len()), Ok(1));
    assert_eq!(decode(&mut decoder, &hex("82")).map(|f| f.len()), Ok(1));
    // A table that the peer made small before need not shrink again.
    let mut decoder = Decoder::default();
    assert_eq!(decode(&mut decoder, &hex("3e 82")).map(|f| f.len()), Ok(1));
    decoder.set_max_table_size(31);
    assert_eq!(decode(&mut decoder, &hex("82")).map(|f| f.len()), Ok(1));
}

#[test]
fn malformed_fields_are_handed_over_and_the_block_is_read_on() {
    let mut decoder = Decoder::default();
    // Upper case, NUL in a value, an empty name; all with indexing.
    let fields = decode(&mut decoder, &hex("40 0141 0162  40 0161 0100  40 00 0162  82")).unwrap();
    let expected: Fields = vec![
        (b"A".into(), b"b".into(), Some(Fault::Name)),
        (b"a".into(), b"\0".into(), Some(Fault::Value)),
        (b"".into(), b"b".into(), Some(Fault::Name)),
        (b":method".into(), b"GET".into(), None),
    ];
    assert_eq!(fields, expected);
    // The same from the table, and its names with other values.
    assert_eq!(decode(&mut decoder, &hex("c0 bf be")).unwrap(), expected[..3]);
    let fields = decode(&mut decoder, &hex("0f31 0163  0f30 0163")).unwrap();
    let expected: Fields = vec![(b"A".into(), b"c".into(), Some(Fault::Name)), (b"a".into(), b"c".into(), None)];
    assert_eq!(fields, expected);
    // Without indexing.
    let fields = decode(&mut decoder, &hex("00 0141 0162 00 06 617070656e64 010a 00 023a3a 00 00 013a 00")).unwrap();
    let faults: Vec<_> = fields.iter().map(|f| f.2).collect();
    assert_eq!(faults, [Some(Fault::Name), Some(Fault::Value), Some(Fault::Name), Some(Fault::Name)]);
}

#[test]
fn a_sink_that_breaks_leaves_the_table_right() {
    let block = hex("82 40 0161 0162 40 0163 0164 00 0165 0166 82");
    for stop in 1..=5 {
        let mut decoder = Decoder::default();
        let mut n = 0;
        let result = decoder.decode(&block, |_, _| {
            n += 1;
            if n == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert_eq!((result, n), (Ok(()), stop));
        assert_eq!(list(&mut decoder, &hex("be bf")), "c: d\na: b");
        assert_eq!(decode(&mut decoder, &hex("c0")), Err(HpackError::InvalidIndex));
    }
}

#[test]
fn a_list_that_comes_again_takes_a_byte_for_each_field() {
    let list = headers(&[
        (":method", "GET"),
        (":path", "/pkg.Service/Method"),
        (":scheme", "http"),
        (":authority", "api.example"),
        ("user-agent", "test/1.0"),
        ("x-custom", "some value"),
    ]);
    let mut encoder = Encoder::new();
    let sizes: Vec<usize> = (0..3).map(|_| block(&mut encoder, &list).len()).collect();
    assert!(sizes[0] > sizes[1] && sizes[1] > sizes[2], "{sizes:?}");
    assert_eq!(sizes[2], list.len());
}

#[test]
fn credentials_are_never_indexed() {
    let list = headers(&[("authorization", "Bearer abc"), ("cookie", "a=b")]);
    let mut encoder = Encoder::new();
    let first = block(&mut encoder, &list);
    assert_eq!(first[0], 0x1f, "a literal that is never indexed");
    assert_eq!(block(&mut encoder, &list), first);
}

#[test]
fn values_that_never_come_again_push_nothing_out() {
    let mut encoder = Encoder::new();
    let stable = headers(&[("x-stable", "a value that stays"), (":authority", "api.example")]);
    block(&mut encoder, &stable);
    for i in 0..1000 {
        let (id, length) = (format!("{i:032x}"), i.to_string());
        block(&mut encoder, &headers(&[("x-request-id", &id), ("content-length", &length), ("x-order", &id)]));
    }
    assert_eq!(block(&mut encoder, &stable).len(), 2);
}

#[test]
fn table_sizes_of_the_peer_are_announced_in_the_next_block() {
    let list = headers(&[(":method", "GET")]);
    let mut encoder = Encoder::new();
    assert_eq!(block(&mut encoder, &list), hex("82"));
    encoder.set_peer_table_size(65_536);
    assert_eq!(block(&mut encoder, &list), hex("82"), "more than 4096 is not used");
    encoder.set_peer_table_size(0);
    assert_eq!(block(&mut encoder, &list), hex("20 82"));
    encoder.set_peer_table_size(100);
    encoder.set_peer_table_size(10);
    encoder.set_peer_table_size(30);
    assert_eq!(block(&mut encoder, &list), hex("2a 3e 82"));
    assert_eq!(block(&mut Encoder::with_max_table_size(0), &list), hex("20 82"));
}

#[test]
fn blocks_of_another_encoder_are_read() {
    // Made with the Python package hpack; see the file.
    let mut decoder = Decoder::default();
    let mut count = 0;
    for story in include_str!("tests_interop.txt").split("\n\n") {
        let mut lines = story.lines().filter(|l| !l.starts_with('#'));
        let Some(block) = lines.next() else { continue };
        let expected: Vec<String> = lines.map(str::to_owned).collect();
        assert_eq!(list(&mut decoder, &hex(block)), expected.join("\n"));
        count += 1;
    }
    assert_eq!(count, 40);
}

#[test]
fn every_name_of_the_static_table_survives() {
    let mut all = Headers::new();
    for (name, value) in &static_table::ENTRIES {
        all.append(name.clone(), value.clone());
    }
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::default());
    for _ in 0..3 {
        let block = block(&mut encoder, &all);
        let mut got = Headers::new();
        decoder
            .decode(&block, |field, _| {
                if let Field::Valid(name, value) = field {
                    got.append(name, value);
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(got, all);
        assert!(got.contains(&names::STATUS));
    }
}

fn any_field() -> impl Strategy<Value = (String, Vec<u8>)> {
    let name = prop_oneof![
        3 => proptest::sample::select(vec![
            ":path", ":authority", "accept", "cookie", "authorization", "x-request-id", "content-length", "link", "via",
        ]).prop_map(str::to_owned),
        1 => "[a-z][a-z0-9-]{0,20}",
    ];
    let value = prop_oneof![
        3 => proptest::sample::select(vec!["", "a", "gzip, deflate", "a value of some length", "12"])
            .prop_map(|v| v.as_bytes().to_vec()),
        1 => proptest::collection::vec(prop_oneof![Just(b'\t'), 0x20..0x7f_u8, 0x80..=0xff_u8], 0..60),
    ];
    (name, value)
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        lists in proptest::collection::vec(
            (proptest::option::of(0..6000_usize), proptest::collection::vec(any_field(), 0..8)), 1..12),
    ) {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::default());
        for (size, fields) in lists {
            if let Some(size) = size {
                decoder.set_max_table_size(size);
                encoder.set_peer_table_size(size);
            }
            let (mut out, mut expected) = (Vec::new(), Fields::new());
            encoder.begin(&mut out);
            for (name, value) in fields {
                expected.push((name.clone().into_bytes(), value.clone(), None));
                let (name, value) = (HeaderName::parse(&name).unwrap(), HeaderValue::parse(value).unwrap());
                encoder.field(&name, &value, &mut out);
            }
            prop_assert_eq!(decode(&mut decoder, &out), Ok(expected));
        }
    }

    #[test]
    fn no_block_makes_the_decoder_panic(
        blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..4),
    ) {
        let mut decoder = Decoder::new(200);
        for block in blocks {
            if decode(&mut decoder, &block).is_err() {
                break;
            }
        }
    }
}
