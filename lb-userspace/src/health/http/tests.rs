//! Answers in pieces, and anything at all.

use proptest::{collection::vec, prelude::*};

use super::*;

/// Its status and length, once it is whole.
fn answer_of(head: &[u8]) -> Option<(u16, usize)> {
    let answer = answer(head).unwrap()?;
    Some((answer.status, answer.length))
}

#[test]
fn an_answer_has_a_status_when_it_is_whole() {
    let answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 302 Found\r\nLocation: /\r\n\r\n";
    for length in 0..answer.len() {
        assert!(answer_of(&answer[..length]).is_none(), "{length}");
    }
    assert_eq!(answer_of(answer), Some((302, answer.len())));
}

proptest! {
    #[test]
    fn no_answer_is_too_strange(
        begin in prop_oneof![Just(""), Just("HTTP/1.1 "), Just("HTTP/1.1 200 OK\r\n")],
        rest in vec(any::<u8>(), 0..100),
    ) {
        let head = [begin.as_bytes(), &rest].concat();
        if let Err(ProbeError::NotHttp(text)) = answer(&head) {
            prop_assert!(text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()));
            // Four characters for each byte quoted, and the parser's own words.
            prop_assert!(text.len() <= 4 * QUOTED + 40, "{text}");
        }
    }
}
