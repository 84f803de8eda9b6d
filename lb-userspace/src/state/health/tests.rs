use proptest::prelude::*;

use super::*;

fn keys(kind: ProbeKind, keys: ProbeKeys) -> Result<Probe, Vec<(HealthKey, String)>> {
    keys.read(kind).map_err(|mistakes| {
        let words = |(key, reason): (HealthKey, Reason)| (key, reason.message);
        mistakes.into_iter().map(words).collect()
    })
}

#[test]
fn statuses_are_ranges() {
    let statuses: Statuses = "200-299, 401,503".parse().unwrap();
    let contained: Vec<u16> = [199, 200, 299, 300, 401, 402, 503]
        .into_iter()
        .filter(|status| statuses.contains(*status))
        .collect();
    assert_eq!(contained, [200, 299, 401, 503]);
    assert_eq!(statuses.to_string(), "200-299, 401, 503");
    for wrong in [
        "", "-", "200-", "299-200", "199", "600", "+200", "2xx", "200,",
    ] {
        assert!(wrong.parse::<Statuses>().is_err(), "{wrong}");
    }
}

#[test]
fn every_key_is_of_some_type() {
    for key in HealthKey::ALL {
        assert!(ProbeKind::ALL.iter().any(|kind| key.is_of(*kind)), "{key}");
    }
    assert_eq!(
        HealthKey::Path.foreign_to(ProbeKind::Tcp),
        Reason::new(
            "a health check of type `tcp` has no `path`",
            "leave it out, or use type `http` or `https`"
        )
    );
}

#[test]
fn keys_of_other_types_are_told_all_together() {
    let given = ProbeKeys {
        path: Some("/".into()),
        query: Some("example.org".into()),
        ..ProbeKeys::default()
    };
    let mistakes = keys(ProbeKind::Udp, given).unwrap_err();
    let named: Vec<_> = mistakes.into_iter().map(|(key, _)| key).collect();
    assert_eq!(named, [HealthKey::Path, HealthKey::Query]);
}

#[test]
fn keys_of_tls_need_it() {
    let given = |tls| ProbeKeys {
        tls,
        server_name: Some("a.example".into()),
        ..ProbeKeys::default()
    };
    assert!(keys(ProbeKind::Grpc, given(Some(true))).is_ok());
    for tls in [None, Some(false)] {
        let mistakes = keys(ProbeKind::Grpc, given(tls)).unwrap_err();
        assert_eq!(mistakes[0].0, HealthKey::ServerName);
    }
}

#[test]
fn bytes_are_text_or_hex() {
    let udp = |send: Option<&str>, send_hex: Option<&str>| {
        let given = ProbeKeys {
            send: send.map(str::to_owned),
            send_hex: send_hex.map(str::to_owned),
            ..ProbeKeys::default()
        };
        match keys(ProbeKind::Udp, given) {
            Ok(Probe::Udp(udp)) => Ok(udp.send),
            Ok(other) => panic!("{other:?}"),
            Err(mistakes) => Err(mistakes[0].0),
        }
    };
    assert_eq!(udp(Some("hé"), None), Ok("hé".into()));
    assert_eq!(udp(None, Some("00fF")), Ok(vec![0, 255]));
    assert_eq!(udp(None, None), Ok(vec![]));
    for wrong in ["0", "0g", "é", "+1"] {
        assert_eq!(udp(None, Some(wrong)), Err(HealthKey::SendHex), "{wrong}");
    }
    assert_eq!(udp(Some("a"), Some("00")), Err(HealthKey::SendHex));
}

#[test]
fn jitter_is_in_percent() {
    assert_eq!(parse_jitter("10%"), Ok(10));
    for wrong in ["", "%", "10", "-1%", "+1%", "1.5%"] {
        assert!(parse_jitter(wrong).is_err(), "{wrong}");
    }
}

proptest! {
    #[test]
    fn what_is_written_of_datagrams_reads_the_same(
        send in proptest::collection::vec(any::<u8>(), 0..40),
        expect in proptest::option::of("[a-z\r\n\x00\x7fé]{1,9}"),
    ) {
        let expect = expect.map(String::into_bytes);
        let probe = Probe::Udp(UdpProbe { send, expect });
        prop_assert_eq!(keys(ProbeKind::Udp, probe.keys()), Ok(probe));
    }

    #[test]
    fn what_is_written_of_http_reads_the_same(
        method in proptest::sample::select(Method::ALL),
        path in "/[a-z]{0,3}",
        body in proptest::option::of("[a-z]{1,3}"),
        (first, last) in (200..400_u16, 400..600_u16),
        alpn in proptest::sample::subsequence(vec![Alpn::Http1, Alpn::Http2], 0..=2),
        verify in any::<bool>(),
    ) {
        let status = format!("{first}-{last}, 200").parse().unwrap();
        let http = HttpProbe { method, path, host: None, status, body };
        let tls = TlsSpec { verify, ..TlsSpec::default() };
        let probe = Probe::Https(http, tls, alpn);
        prop_assert_eq!(keys(ProbeKind::Https, probe.keys()), Ok(probe));
    }
}
