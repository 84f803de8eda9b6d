//! `https` and `grpc` against servers that speak TLS and HTTP/2.

use std::sync::Arc;

use hyper::{HeaderMap, Response, body::Bytes};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto, pki_types::PrivateKeyDer},
    server::TlsStream,
};

use super::*;
use crate::state::{Alpn, GrpcProbe, TlsSpec};

/// A certificate that is its own authority, and the file that has it.
struct Authority {
    config: ServerConfig,
    file: tempfile::NamedTempFile,
}

fn authority(names: &[&str]) -> Authority {
    let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let provider = Arc::new(crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), cert.pem()).unwrap();
    Authority { config, file }
}

/// What this probe finds of a server, without TLS.
async fn found(probe: Probe, server: impl AsyncFnOnce(TcpStream)) -> Result<(), String> {
    find(V4, &spec(probe, AMPLE), server).await
}

impl Authority {
    /// What a probe finds of a server with this certificate that takes these protocols.
    async fn found(
        &self,
        probe: Probe,
        alpn: &[&str],
        server: impl AsyncFnOnce(TlsStream<TcpStream>),
    ) -> Result<(), String> {
        let mut config = self.config.clone();
        config.alpn_protocols = alpn.iter().map(|&word| word.into()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        found(probe, async |stream| {
            // The client may not like what it sees.
            if let Ok(stream) = acceptor.accept(stream).await {
                server(stream).await;
            }
        })
        .await
    }

    fn trusted(&self, server_name: &str) -> TlsSpec {
        TlsSpec {
            server_name: Some(server_name.to_owned()),
            ca: Some(self.file.path().to_owned()),
            verify: true,
        }
    }
}

fn https(tls: &TlsSpec) -> Probe {
    Probe::Https(HttpProbe::default(), tls.clone(), vec![])
}

async fn ok(mut stream: TlsStream<TcpStream>) {
    let mut asked = [0; 4];
    stream.read_exact(&mut asked).await.unwrap();
    assert_eq!(&asked, b"GET ");
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    stream.flush().await.unwrap();
}

#[tokio::test]
async fn https_looks_at_the_certificate() {
    let ours = authority(&["a.example", "127.0.0.1"]);
    let theirs = authority(&["a.example"]);
    let result = ours.found(https(&ours.trusted("a.example")), &[], ok).await;
    assert_eq!(result, Ok(()));
    // By the address where no name is given, by the host where that is.
    let mut tls = ours.trusted("");
    tls.server_name = None;
    assert_eq!(ours.found(https(&tls), &[], ok).await, Ok(()));
    let other_name = failed("TLS: the certificate is for another name");
    for (host, expected) in [
        ("a.example:8443", Ok(())),
        ("b.example", other_name.clone()),
    ] {
        let http = HttpProbe {
            host: Some(host.into()),
            ..HttpProbe::default()
        };
        let probe = Probe::Https(http, tls.clone(), vec![]);
        assert_eq!(ours.found(probe, &[], ok).await, expected, "{host}");
    }

    let result = ours.found(https(&ours.trusted("b.example")), &[], ok).await;
    assert_eq!(result, other_name);
    let unknown = failed("TLS: the certificate is of an unknown authority");
    let result = ours.found(https(&theirs.trusted("a.example")), &[], ok);
    assert_eq!(result.await, unknown);
    let of_host = TlsSpec {
        ca: None,
        ..ours.trusted("a.example")
    };
    assert_eq!(ours.found(https(&of_host), &[], ok).await, unknown);
    let any = TlsSpec {
        server_name: Some("c.example".into()),
        ca: None,
        verify: false,
    };
    assert_eq!(ours.found(https(&any), &[], ok).await, Ok(()));
}

#[tokio::test]
async fn https_sends_the_name() {
    let ours = authority(&["a.example"]);
    let mut asked = None;
    let result = ours.found(https(&ours.trusted("a.example")), &[], async |stream| {
        asked = stream.get_ref().1.server_name().map(str::to_owned);
        ok(stream).await;
    });
    assert_eq!(result.await, Ok(()));
    assert_eq!(asked.as_deref(), Some("a.example"));
}

#[tokio::test]
async fn https_against_what_is_no_tls() {
    let ours = authority(&["a.example"]);
    let probe = https(&ours.trusted("a.example"));
    let result = found(probe.clone(), async |mut stream| {
        stream.write_all(b"HTTP/1.1 400 No\r\n\r\n").await.unwrap();
        future::pending::<()>().await;
    });
    assert_eq!(result.await, failed("TLS: the answer is not TLS"));
    let result = found(probe, async |mut stream| {
        stream.read_u8().await.unwrap();
    });
    // Which of them depends on whether the rest was on its way.
    let error = result.await.unwrap_err();
    let closed = [
        "connection closed without a whole answer",
        "connection reset by peer",
    ];
    assert!(closed.contains(&error.as_str()), "{error}");
}

#[tokio::test]
async fn an_authority_that_cannot_be_read() {
    let ours = authority(&["a.example"]);
    for (path, text) in [
        ("/no/such/file", "No such file or directory (os error 2)"),
        ("/dev/null", "there is no certificate in it"),
    ] {
        let tls = TlsSpec {
            ca: Some(path.into()),
            ..ours.trusted("a.example")
        };
        let expected = failed(&format!("cannot check: `{path}`: {text}"));
        assert_eq!(ours.found(https(&tls), &[], ok).await, expected);
    }
}

/// Answers one request of HTTP/2 with this status, body and trailers.
async fn serve_http2<S>(stream: S, status: u16, body: &'static [u8], trailers: &[(&str, &str)])
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = h2::server::handshake(stream).await.unwrap();
    let (_, mut respond) = connection.accept().await.unwrap().unwrap();
    let head = Response::builder().status(status).body(()).unwrap();
    let mut stream = respond.send_response(head, false).unwrap();
    stream.send_data(Bytes::from_static(body), false).unwrap();
    let mut fields = HeaderMap::new();
    for (name, value) in trailers {
        let name: hyper::header::HeaderName = name.parse().unwrap();
        fields.insert(name, value.parse().unwrap());
    }
    stream.send_trailers(fields).unwrap();
    while let Some(Ok(_)) = connection.accept().await {}
}

#[tokio::test]
async fn https_speaks_what_the_server_chooses() {
    let ours = authority(&["a.example"]);
    let probe = |alpn: &[Alpn], body: &str| {
        let http = HttpProbe {
            body: Some(body.to_owned()),
            ..HttpProbe::default()
        };
        Probe::Https(http, ours.trusted("a.example"), alpn.to_vec())
    };
    let both = [Alpn::Http2, Alpn::Http1];
    let http2 = async |stream| serve_http2(stream, 200, b"ready", &[]).await;
    let result = ours.found(probe(&both, "ready"), &["h2"], http2).await;
    assert_eq!(result, Ok(()));
    let result = ours.found(probe(&both, "steady"), &["h2"], http2).await;
    assert_eq!(result, failed("not in the body: \"steady\""));
    let failing = async |stream| serve_http2(stream, 503, b"ready", &[]).await;
    let result = ours.found(probe(&both, "ready"), &["h2"], failing).await;
    assert_eq!(result, failed("status 503"));
    let http1 = async |mut stream: TlsStream<TcpStream>| {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nready";
        // The client may not want to hear it.
        let _gone = stream.write_all(answer).await;
        let _gone = stream.flush().await;
    };
    let result = ours.found(probe(&both, "ready"), &["http/1.1"], http1);
    assert_eq!(result.await, Ok(()));
    // A server that knows nothing of it takes none.
    let result = ours.found(probe(&both, "ready"), &[], http1).await;
    let text = "TLS: the server takes none of the protocols h2, http/1.1";
    assert_eq!(result, failed(text));
    let result = ours.found(probe(&[Alpn::Http2], "ready"), &["http/1.1"], http1);
    let text = "TLS: the server sent the alert NoApplicationProtocol";
    assert_eq!(result.await, failed(text));
}

fn grpc(tls: Option<TlsSpec>) -> Probe {
    Probe::Grpc(GrpcProbe {
        service: "mail.Inbox".into(),
        host: None,
        tls,
    })
}

#[tokio::test]
async fn grpc_goes_by_the_serving_status() {
    const ENDED: &[(&str, &str)] = &[("grpc-status", "0")];
    const UNKNOWN: &[(&str, &str)] = &[("grpc-status", "5"), ("grpc-message", "no%20service")];
    const SERVING: &[u8] = b"\0\0\0\0\x02\x08\x01";
    const NOT_SERVING: &[u8] = b"\0\0\0\0\x02\x08\x02";
    let ours = authority(&["a.example"]);
    for (body, trailers, expected) in [
        (SERVING, ENDED, Ok(())),
        (NOT_SERVING, ENDED, failed("gRPC: NOT_SERVING")),
        (b"\0\0\0\0\0", ENDED, failed("gRPC: UNKNOWN")),
        (b"", UNKNOWN, failed("gRPC: NOT_FOUND: no service")),
        (b"", ENDED, failed("gRPC: no answer that can be read")),
        (SERVING, &[], failed("gRPC: no status of the call")),
    ] {
        let result = found(grpc(None), async |stream| {
            serve_http2(stream, 200, body, trailers).await;
        });
        assert_eq!(result.await, expected);
        let secure = grpc(Some(ours.trusted("a.example")));
        let result = ours.found(secure, &["h2"], async |stream| {
            serve_http2(stream, 200, body, trailers).await;
        });
        assert_eq!(result.await, expected);
    }
}

#[tokio::test]
async fn grpc_asks_as_the_protocol_wants() {
    let mut asked = None;
    let result = found(grpc(None), async |stream| {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        let (head, mut body) = request.into_parts();
        let body = async move {
            let mut bytes = Vec::new();
            while let Some(piece) = body.data().await {
                bytes.extend(piece.unwrap());
            }
            bytes
        };
        let body = tokio::select! {
            body = body => body,
            _ = connection.accept() => unreachable!("there is but one request"),
        };
        asked = Some((head, body));
        // What has no message says so in its header.
        let answer = Response::builder().header("grpc-status", "12").body(());
        respond.send_response(answer.unwrap(), true).unwrap();
        while let Some(Ok(_)) = connection.accept().await {}
    });
    assert_eq!(result.await, failed("gRPC: UNIMPLEMENTED"));
    let (head, body) = asked.unwrap();
    assert_eq!(head.method, "POST");
    assert_eq!(head.uri.path(), "/grpc.health.v1.Health/Check");
    assert_eq!(head.headers["content-type"], "application/grpc");
    assert_eq!(head.headers["te"], "trailers");
    assert_eq!(body, b"\0\0\0\0\x0c\x0a\x0amail.Inbox");
}

#[tokio::test]
async fn grpc_against_http1() {
    let result = found(grpc(None), async |mut stream| {
        let answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        future::pending::<()>().await;
    });
    let error = result.await.unwrap_err();
    assert!(error.starts_with("HTTP/2: "), "{error}");
}
