//! The probes against servers on the loopback that behave and misbehave.
//!
//! A probe that must get an answer has half a minute for it, so that a slow host
//! changes no result; one that must run out of time would never get an answer.

use std::{future, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
};

use super::*;
use crate::state::{
    DnsProbe, ExecProbe, HealthSpec, HttpProbe, Method, Rcode, RecordType, UdpProbe,
};

mod tls;

const AMPLE: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(200);
const V4: &str = "127.0.0.1:0";
const V6: &str = "[::1]:0";

fn spec(probe: Probe, timeout: Duration) -> HealthSpec {
    HealthSpec {
        interval: AMPLE,
        timeout: Some(timeout),
        ..HealthSpec::new(probe)
    }
}

fn http(timeout: Duration) -> HealthSpec {
    spec(Probe::Http(with_path()), timeout)
}

fn with_path() -> HttpProbe {
    HttpProbe {
        path: "/healthz?deep=1".into(),
        ..HttpProbe::default()
    }
}

/// What a check of this address finds.
async fn probe(address: SocketAddr, spec: &HealthSpec) -> Result<(), ProbeError> {
    super::probe(&Target {
        service: "web".into(),
        backend: "10.0.0.11:8443".parse().unwrap(),
        address,
        service_address: None,
        clients: None,
        spec: spec.clone(),
    })
    .await
}

/// What a connection to where clients go finds.
async fn confirm(clients: Option<SocketAddr>) -> Result<(), String> {
    let target = Target {
        service: "web".into(),
        backend: "10.0.0.11:8443".parse().unwrap(),
        address: "127.0.0.1:9".parse().unwrap(),
        service_address: None,
        clients,
        spec: HealthSpec::new(Probe::Icmp),
    };
    let confirmed = super::confirm(&target).await;
    confirmed.map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_doubt_is_confirmed_by_what_the_backend_does_alone() {
    assert_eq!(confirm(None).await, Ok(()), "it is not to be asked");
    for bind in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(bind).await.unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(confirm(Some(address)).await, Ok(()));
        drop(listener);
        let refused = "clients get no connection: connection refused";
        assert_eq!(confirm(Some(address)).await, Err(refused.into()));
    }
    // What this host does not do proves nothing: it is to no host that one can connect.
    let nobody = Some(SocketAddr::from(([255, 255, 255, 255], 80)));
    assert_eq!(confirm(nobody).await, Ok(()));
}

#[tokio::test]
async fn silence_confirms_a_doubt() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    // Nobody accepts: when the queue is full, SYNs are dropped.
    let mut waiting = Vec::new();
    while let Ok(stream) = time::timeout(SHORT, TcpStream::connect(address)).await {
        waiting.push(stream.unwrap());
        assert!(waiting.len() < 100);
    }
    let silent = "clients get no connection: timed out after 500ms";
    assert_eq!(confirm(Some(address)).await, Err(silent.into()));
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
        let probe = Probe::Http(HttpProbe {
            host: host.map(str::to_owned),
            ..with_path()
        });
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
async fn http_has_a_method_and_statuses_of_its_own() {
    for (method, line) in [
        (Method::Head, "HEAD / HTTP/1.1\r\n"),
        (Method::Options, "OPTIONS / HTTP/1.1\r\n"),
        (Method::Post, "POST / HTTP/1.1\r\n"),
    ] {
        let probe = HttpProbe {
            method,
            status: "401, 500-503".parse().unwrap(),
            ..HttpProbe::default()
        };
        for (status, expected) in [(401, Ok(())), (502, Ok(())), (200, failed("status 200"))] {
            let mut asked = String::new();
            let spec = spec(Probe::Http(probe.clone()), AMPLE);
            let found = find(V4, &spec, async |mut stream| {
                asked = request(&mut stream).await;
                let answer = format!("HTTP/1.1 {status} \r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            })
            .await;
            assert_eq!(found, expected, "{method} {status}");
            assert!(asked.starts_with(line), "{asked}");
            let has_length = asked.contains("\r\nContent-Length: 0\r\n");
            assert_eq!(has_length, method == Method::Post, "{asked}");
        }
    }
}

#[tokio::test]
async fn http_looks_into_the_body() {
    let probe = Probe::Http(HttpProbe {
        body: Some("ready".into()),
        ..HttpProbe::default()
    });
    let spec = spec(probe, AMPLE);
    let found = async |answer: &str, closes: bool| {
        find(V4, &spec, async |mut stream| {
            request(&mut stream).await;
            // In pieces, as networks like to cut.
            for piece in answer.as_bytes().chunks(7) {
                // The probe may have heard enough.
                let _gone = stream.write_all(piece).await;
                let _gone = stream.flush().await;
            }
            if !closes {
                future::pending::<()>().await;
            }
        })
        .await
    };
    let missing = || failed("not in the body: \"ready\"");
    let length = |body: &str| {
        let length = body.len();
        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}")
    };
    assert_eq!(found(&length("not yet ready!"), false).await, Ok(()));
    assert_eq!(found(&length("not yet"), false).await, missing());
    assert_eq!(found(&length(""), false).await, missing());
    let chunked =
        |body: &str| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    let split = "3\r\nrea\r\n2\r\ndy\r\n0\r\n\r\n";
    assert_eq!(found(&chunked(split), false).await, Ok(()));
    let other = "5\r\nhello\r\n0\r\n\r\n";
    assert_eq!(found(&chunked(other), false).await, missing());
    let cut = found(&chunked("5\r\nhel"), true).await;
    assert_eq!(cut, failed("connection closed without a whole answer"));
    let until_close = "HTTP/1.0 200 OK\r\n\r\n";
    assert_eq!(found(&format!("{until_close}ready"), true).await, Ok(()));
    assert_eq!(found(&format!("{until_close}hello"), true).await, missing());
    // What comes late in a large body is not waited for.
    let large = format!("{until_close}{}ready", "a".repeat(2 * HttpProbe::MAX_BODY));
    assert_eq!(found(&large, false).await, missing());
    // The status comes first.
    let failing = "HTTP/1.1 503 No\r\nContent-Length: 5\r\n\r\nready";
    assert_eq!(found(failing, false).await, failed("status 503"));
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

/// What a probe finds of a server of datagrams that answers so; `None` for not at all.
async fn answered_by_datagram(
    bind: &str,
    spec: &HealthSpec,
    answer: impl Fn(&[u8]) -> Vec<Vec<u8>>,
) -> Result<(), String> {
    let socket = UdpSocket::bind(bind).await.unwrap();
    let target = socket.local_addr().unwrap();
    let serve = async {
        let mut buffer = [0; 2_048];
        let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
        for datagram in answer(&buffer[..length]) {
            socket.send_to(&datagram, client).await.unwrap();
        }
        future::pending::<()>().await;
    };
    let found = tokio::select! {
        found = probe(target, spec) => found,
        () = serve => unreachable!("it waits for ever"),
    };
    found.map_err(|error| error.to_string())
}

#[tokio::test]
async fn udp_looks_into_the_answer() {
    let udp = |expect: Option<&str>, timeout| {
        let expect = expect.map(|text| text.as_bytes().to_vec());
        let send = b"PING\0".to_vec();
        spec(Probe::Udp(UdpProbe { send, expect }), timeout)
    };
    let echo = |asked: &[u8]| vec![[b"you said ", asked].concat()];
    for bind in [V4, V6] {
        let found = answered_by_datagram(bind, &udp(None, AMPLE), echo).await;
        assert_eq!(found, Ok(()), "{bind}");
    }
    let right = udp(Some("said PING\0"), AMPLE);
    assert_eq!(answered_by_datagram(V4, &right, echo).await, Ok(()));
    let wrong = answered_by_datagram(V4, &udp(Some("PONG"), AMPLE), echo).await;
    assert_eq!(wrong, failed(r#"answered "you said PING\x00""#));
    let none = answered_by_datagram(V4, &udp(None, SHORT), |_| vec![]).await;
    assert_eq!(none, failed("timed out after 200ms"));
    // Bound and closed again: nobody listens, and the host says so.
    let target = UdpSocket::bind(V4).await.unwrap().local_addr().unwrap();
    let error = probe(target, &udp(None, AMPLE)).await.unwrap_err();
    assert_eq!(error.to_string(), "connection refused");
}

#[tokio::test]
async fn dns_takes_the_answer_to_its_own_question() {
    let dns = Probe::Dns(DnsProbe {
        query: "www.example.org".into(),
        record: RecordType::A,
        rcode: Rcode::NxDomain,
        answer: None,
    });
    let reply = |asked: &[u8]| {
        let mut reply = asked.to_vec();
        // A response, of a server that does recursion, without such a name.
        reply[2] |= 0x80;
        reply[3] = 0x83;
        reply
    };
    let spec = spec(dns, AMPLE);
    let found = answered_by_datagram(V4, &spec, |asked| {
        let mut other = reply(asked);
        other[0] ^= 1;
        vec![other, asked.to_vec(), reply(asked)]
    });
    assert_eq!(found.await, Ok(()));
    let found = answered_by_datagram(V4, &spec, |_| vec![b"hello".to_vec()]);
    assert_eq!(found.await, failed("DNS: the answer is not DNS"));
}

fn exec(command: &[&str], timeout: Duration) -> HealthSpec {
    let probe = ExecProbe {
        command: command.iter().map(|&word| word.to_owned()).collect(),
        environment: [("MODE".to_owned(), "fast".to_owned())].into(),
    };
    spec(Probe::Exec(probe), timeout)
}

async fn ran(command: &[&str]) -> Result<(), String> {
    let address = "10.0.0.11:8443".parse().unwrap();
    let found = probe(address, &exec(command, AMPLE)).await;
    found.map_err(|error| error.to_string())
}

#[tokio::test]
async fn exec_goes_by_the_exit_status() {
    assert_eq!(ran(&["/bin/true"]).await, Ok(()));
    assert_eq!(ran(&["/bin/false"]).await, failed("exit status 1"));
    let script = "echo; echo out of \u{1b}memory >&2; exit 7";
    let found = ran(&["/bin/sh", "-c", script]).await;
    assert_eq!(found, failed(r"exit status 7: out of \x1bmemory"));
    let found = ran(&["/bin/sh", "-c", "kill -9 $$"]).await;
    assert_eq!(found, failed("ended by SIGKILL"));
    let found = ran(&["/no/such/program"]).await;
    let text = "cannot check: `/no/such/program`: No such file or directory (os error 2)";
    assert_eq!(found, failed(text));
    // Whatever it says: nobody has to read it for the program to go on.
    let script = "head -c 1000000 /dev/zero; exit 0";
    assert_eq!(ran(&["/bin/sh", "-c", script]).await, Ok(()));
    // A child that lives on and holds its output does not keep it.
    let script = "sleep 60 & exit 0";
    assert_eq!(ran(&["/bin/sh", "-c", script]).await, Ok(()));
}

#[tokio::test]
async fn exec_gives_an_environment_and_no_more() {
    let script = "env | sort | tr '\n' ' '; pwd; exit 1";
    let found = ran(&["/bin/sh", "-c", script]).await.unwrap_err();
    let expected = "exit status 1: LB_ADDRESS=10.0.0.11 LB_BACKEND=10.0.0.11:8443 LB_PORT=8443 \
                    LB_SERVICE=web MODE=fast PATH=/usr/local/s";
    assert!(found.starts_with(expected), "{found}");
}

#[tokio::test]
async fn exec_ends_with_its_children_at_the_timeout() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pids");
    let script = format!("sleep 600 & echo $! $$ > {}; wait", file.display());
    let address = "10.0.0.11:8443".parse().unwrap();
    // Long enough for a shell to start, also on a busy host.
    let spec = exec(&["/bin/sh", "-c", &script], 10 * SHORT);
    let found = probe(address, &spec).await.map_err(|e| e.to_string());
    assert_eq!(found, failed("timed out after 2s"));
    let pids = std::fs::read_to_string(&file).unwrap();
    for pid in pids.split_whitespace() {
        // A zombie that nobody has waited for yet has no command line.
        let alive = || {
            let line = std::fs::read(format!("/proc/{pid}/cmdline"));
            line.is_ok_and(|line| !line.is_empty())
        };
        let deadline = std::time::Instant::now() + AMPLE;
        while alive() {
            assert!(std::time::Instant::now() < deadline, "{pid} is alive");
            tokio::task::yield_now().await;
        }
    }
}

#[test]
fn timeouts_are_written_as_in_the_configuration() {
    let text = |millis| ProbeError::TimedOut(Duration::from_millis(millis)).to_string();
    assert_eq!(text(1_000), "timed out after 1s");
    assert_eq!(text(1_500), "timed out after 1s 500ms");
}
