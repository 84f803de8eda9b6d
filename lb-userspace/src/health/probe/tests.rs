//! The probes against servers on the loopback that behave and misbehave.
//!
//! A probe that must get an answer has half a minute for it, so that a slow host
//! changes no result; one that must run out of time would never get an answer.

use std::future;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};

use super::*;

const AMPLE: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(200);
const V4: &str = "127.0.0.1:0";
const V6: &str = "[::1]:0";

fn spec(probe: Probe, timeout: Duration) -> HealthSpec {
    HealthSpec {
        probe,
        interval: AMPLE,
        timeout: Some(timeout),
        rise: HealthSpec::DEFAULT_RISE,
        fall: HealthSpec::DEFAULT_FALL,
        port: None,
    }
}

fn http(timeout: Duration) -> HealthSpec {
    let path = "/healthz?deep=1".into();
    spec(Probe::Http { path, host: None }, timeout)
}

/// What the probe finds of a server at `bind` that treats its one connection so. The
/// server lives until the probe is done.
async fn find(
    bind: &str,
    spec: &HealthSpec,
    server: impl AsyncFnOnce(TcpStream),
) -> Result<(), String> {
    let listener = TcpListener::bind(bind).await.unwrap();
    let target = listener.local_addr().unwrap();
    let serve = async {
        let (stream, _) = listener.accept().await.unwrap();
        server(stream).await;
        future::pending::<()>().await;
    };
    let found = tokio::select! {
        found = probe(target, spec) => found,
        () = serve => unreachable!("it waits for ever"),
    };
    found.map_err(|error| error.to_string())
}

/// Reads a request to the end of its header.
async fn request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        assert_ne!(
            stream.read_buf(&mut bytes).await.unwrap(),
            0,
            "a whole request"
        );
    }
    String::from_utf8(bytes).unwrap()
}

/// What the `http` probe makes of this answer, from a server that then waits.
async fn answered(answer: &[u8]) -> Result<(), String> {
    find(V4, &http(AMPLE), async |mut stream| {
        request(&mut stream).await;
        stream.write_all(answer).await.unwrap();
        future::pending::<()>().await;
    })
    .await
}

/// What the `http` probe makes of this answer, from a server that then closes.
async fn answered_and_closed(answer: &[u8]) -> Result<(), String> {
    find(V4, &http(AMPLE), async |mut stream| {
        request(&mut stream).await;
        stream.write_all(answer).await.unwrap();
    })
    .await
}

fn failed(text: &str) -> Result<(), String> {
    Err(text.to_owned())
}

#[tokio::test]
async fn tcp_is_content_with_a_connection() {
    for bind in [V4, V6] {
        let found = find(bind, &spec(Probe::Tcp, AMPLE), async |_| ()).await;
        assert_eq!(found, Ok(()), "{bind}");
    }
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_refuses() {
    // Bound, so that nobody else gets the port, but not listening.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(V4.parse().unwrap()).unwrap();
    let target = socket.local_addr().unwrap();
    for spec in [spec(Probe::Tcp, AMPLE), http(AMPLE)] {
        let error = probe(target, &spec).await.unwrap_err();
        assert_eq!(error.to_string(), "connection refused");
    }
}

#[tokio::test]
async fn tcp_does_not_wait_for_ever_for_a_connection() {
    // With nobody accepting, the queue of the listener is soon full; then the kernel
    // drops what asks for a connection.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(V4.parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let target = listener.local_addr().unwrap();
    let spec = spec(Probe::Tcp, SHORT);
    let mut last = Ok(());
    for _ in 0..8 {
        last = probe(target, &spec).await;
    }
    assert_eq!(last.unwrap_err().to_string(), "timed out after 200ms");
}

#[tokio::test]
async fn http_asks_as_the_standard_wants() {
    for (bind, host) in [(V4, None), (V6, None), (V4, Some("www.example.org"))] {
        let path = "/healthz?deep=1".to_owned();
        let probe = Probe::Http {
            path,
            host: host.map(str::to_owned),
        };
        let mut asked = String::new();
        let mut target = String::new();
        let found = find(bind, &spec(probe, AMPLE), async |mut stream| {
            target = stream.local_addr().unwrap().to_string();
            asked = request(&mut stream).await;
            stream
                .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
                .await
                .unwrap();
        })
        .await;
        assert_eq!(found, Ok(()), "{bind}");
        assert_eq!(
            asked,
            format!(
                "GET /healthz?deep=1 HTTP/1.1\r\n\
                 Host: {}\r\n\
                 User-Agent: lb-health/{}\r\n\
                 Accept: */*\r\n\
                 Connection: close\r\n\r\n",
                host.unwrap_or(&target),
                env!("CARGO_PKG_VERSION"),
            )
        );
        assert_eq!(bind == V6, target.starts_with("[::1]:"));
    }
}

#[tokio::test]
async fn http_statuses() {
    for status in [200, 204, 299, 301, 302, 399] {
        let answer = format!("HTTP/1.1 {status} \r\nServer: test\r\n\r\n");
        assert_eq!(answered(answer.as_bytes()).await, Ok(()), "{status}");
    }
    for status in [400, 404, 500, 503, 599] {
        let answer = format!("HTTP/1.1 {status} No\r\nContent-Length: 3\r\n\r\nno\n");
        let found = answered(answer.as_bytes()).await;
        assert_eq!(found, failed(&format!("status {status}")));
    }
    assert_eq!(answered(b"HTTP/1.0 200 OK\r\n\r\n").await, Ok(()));
}

#[tokio::test]
async fn http_passes_over_interim_responses() {
    let early = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n";
    let then = |status| format!("HTTP/1.1 100 Continue\r\n\r\n{early}HTTP/1.1 {status}\r\n\r\n");
    assert_eq!(answered(then("200 OK").as_bytes()).await, Ok(()));
    assert_eq!(
        answered(then("500 No").as_bytes()).await,
        failed("status 500")
    );
    assert_eq!(
        answered_and_closed(early.as_bytes()).await,
        failed("connection closed without a whole answer")
    );
}

#[tokio::test]
async fn http_from_a_server_that_closes() {
    for beginning in [
        "",
        "HTTP/1.1 2",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\nA: b\r\n",
    ] {
        assert_eq!(
            answered_and_closed(beginning.as_bytes()).await,
            failed("connection closed without a whole answer"),
            "{beginning:?}"
        );
    }
}

#[tokio::test]
async fn http_from_a_server_that_does_not_read() {
    let found = find(V4, &http(AMPLE), async |stream| drop(stream)).await;
    // Which of them depends on whether the request was on its way already.
    let texts = [
        "connection closed without a whole answer",
        "connection reset by peer",
        "broken pipe",
    ];
    let error = found.unwrap_err();
    assert!(texts.contains(&error.as_str()), "{error}");
}

#[tokio::test]
async fn http_from_something_else() {
    for (answer, quoted) in [
        (
            &b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"[..],
            "SSH-2.0-OpenSSH_9.2p1 De",
        ),
        // A TLS alert.
        (
            &b"\x15\x03\x03\x00\x02\x02\x46"[..],
            r"\x15\x03\x03\x00\x02\x02F",
        ),
        (&b"\x1b[2Jgone\r\n"[..], r"\x1b[2Jgone"),
    ] {
        let error = answered(answer).await.unwrap_err();
        assert!(error.starts_with("not HTTP: "), "{error}");
        assert!(error.ends_with(&format!(": \"{quoted}\"")), "{error}");
    }
}

#[tokio::test]
async fn http_reads_a_bounded_header() {
    let sized = |size: usize| {
        let (begin, end) = ("HTTP/1.1 200 OK\r\nA: ", "\r\n\r\n");
        let filling = "a".repeat(size - begin.len() - end.len());
        format!("{begin}{filling}{end}")
    };
    assert_eq!(answered(sized(http::MAX_HEAD).as_bytes()).await, Ok(()));
    let too_large = failed("header larger than 16 KiB");
    let found = answered(sized(http::MAX_HEAD + 1).as_bytes()).await;
    assert_eq!(found, too_large);

    let fields = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(200));
    let error = answered(fields.as_bytes()).await.unwrap_err();
    assert_eq!(error, "not HTTP: too many headers: \"HTTP/1.1 200 OK\"");
}

#[tokio::test]
async fn http_does_not_wait_for_ever_for_an_answer() {
    let found = find(V4, &http(SHORT), async |_stream| future::pending().await).await;
    assert_eq!(found, failed("timed out after 200ms"));
}

#[tokio::test]
async fn http_has_one_timeout_for_the_whole_answer() {
    let found = find(V4, &http(SHORT), async |mut stream| {
        request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nA: ").await.unwrap();
        // As long as one can bear, always in time for a timeout of each read.
        for _ in 0..1_000 {
            stream.write_all(b"a").await.unwrap();
            time::sleep(SHORT / 20).await;
        }
    })
    .await;
    assert_eq!(found, failed("timed out after 200ms"));
}

#[test]
fn timeouts_are_written_as_in_the_configuration() {
    let text = |millis| ProbeError::TimedOut(Duration::from_millis(millis)).to_string();
    assert_eq!(text(1_000), "timed out after 1s");
    assert_eq!(text(1_500), "timed out after 1s 500ms");
}
