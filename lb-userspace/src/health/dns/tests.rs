//! Answers as servers give them, put together by hand.

use super::*;

fn dns(record: RecordType, answer: Option<&str>) -> DnsProbe {
    DnsProbe {
        query: "www.example.org".into(),
        record,
        rcode: Rcode::NoError,
        answer: answer.map(str::to_owned),
    }
}

/// An answer with these records of `www.example.org`: type, and data.
fn answer(rcode: u8, records: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 0x81, 0x80 | rcode, 0, 1];
    bytes.extend((records.len() as u16).to_be_bytes());
    bytes.extend([0, 0, 0, 0]);
    bytes.extend(b"\x03www\x07example\x03org\0\0\x01\0\x01");
    for (kind, data) in records {
        // A pointer to the name of the question.
        bytes.extend([0xc0, 12]);
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 1, 0, 0, 0, 60]);
        bytes.extend((data.len() as u16).to_be_bytes());
        bytes.extend(*data);
    }
    bytes
}

fn judged(bytes: &[u8], dns: &DnsProbe) -> Result<(), String> {
    let answer = Packet::parse(bytes).unwrap();
    judge(&answer, dns).map_err(|error| error.to_string())
}

#[test]
fn a_question_is_as_the_standard_wants() {
    let bytes = question(0x1234, &dns(RecordType::Aaaa, None)).unwrap();
    let expected =
        b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03www\x07example\x03org\0\0\x1c\0\x01".as_slice();
    assert_eq!(bytes, expected);
    let root = DnsProbe {
        query: ".".into(),
        ..dns(RecordType::Ns, None)
    };
    let bytes = question(7, &root).unwrap();
    assert_eq!(
        bytes,
        b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\0\0\x02\0\x01".as_slice()
    );
}

#[test]
fn the_response_code_decides_first() {
    assert_eq!(judged(&answer(0, &[]), &dns(RecordType::A, None)), Ok(()));
    let failing = judged(&answer(2, &[]), &dns(RecordType::A, None));
    assert_eq!(failing, Err("DNS: SERVFAIL".to_owned()));
    let wanted = DnsProbe {
        rcode: Rcode::Refused,
        ..dns(RecordType::A, None)
    };
    assert_eq!(judged(&answer(5, &[]), &wanted), Ok(()));
    let other = judged(&answer(0, &[]), &wanted);
    assert_eq!(other, Err("DNS: NOERROR".to_owned()));
}

#[test]
fn one_of_the_records_says_what_is_expected() {
    let mut six = [0; 16];
    six[..4].copy_from_slice(&[0x20, 1, 0x0d, 0xb8]);
    six[15] = 1;
    let cases: [(RecordType, u16, &[u8], &str); 7] = [
        (RecordType::A, 1, &[192, 0, 2, 10], "192.0.2.10"),
        (RecordType::Aaaa, 28, &six, "2001:0db8::1"),
        (RecordType::Cname, 5, b"\x01A\x03org\0", "a.ORG."),
        (RecordType::Ns, 2, b"\x01a\x03org\0", "a.org"),
        (RecordType::Mx, 15, b"\0\x0a\x01m\x03org\0", "10 m.org."),
        (
            RecordType::Srv,
            33,
            b"\0\x01\0\x02\0\x50\x01s\x03org\0",
            "1 2 80 s.org",
        ),
        (RecordType::Txt, 16, b"\x05hello", "hello"),
    ];
    for (record, kind, data, text) in cases {
        let bytes = answer(0, &[(1, &[192, 0, 2, 99]), (kind, data)]);
        assert_eq!(judged(&bytes, &dns(record, Some(text))), Ok(()), "{text}");
        let error = judged(&bytes, &dns(record, Some("192.0.2.11"))).unwrap_err();
        assert!(
            error.starts_with(&format!("DNS: {record} says ")),
            "{error}"
        );
    }
    let none = judged(&answer(0, &[]), &dns(RecordType::A, Some("192.0.2.10")));
    assert_eq!(none, Err("DNS: no record A".to_owned()));
}
