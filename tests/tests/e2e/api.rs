//! The API against its own description: requests are made by a generator (Schemathesis) of the
//! OpenAPI document that the running daemon serves, right ones and wrong ones.

use std::{
    env, fs,
    io::{self, ErrorKind},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use lb_lab::{Balancer, TopologyOptions};

use crate::{http_of_each_kind, load, programs, standard};

/// The seed of the generator, in the environment; a new one each time where it is not there.
const SEED: &str = "LB_API_SEED";

/// Requests that are made of each operation in each run, at most; some hundred more go along the
/// edges of the schemas.
const EXAMPLES: &str = "10";

/// What an answer must be: no error of the server; with a status, a type, headers and a body as
/// documented; and a refusal where the request is not as documented.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_headers_conformance,response_schema_conformance,\
                      negative_data_rejection";

/// TCP in front of a Unix socket, for a client that knows nothing else. It ends when it is
/// dropped.
struct Bridge {
    address: SocketAddr,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Bridge {
    fn start(socket: PathBuf) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&is_over);
        let thread = thread::spawn(move || {
            thread::scope(|scope| {
                for client in listener.incoming() {
                    if ends.load(Ordering::Relaxed) {
                        return;
                    }
                    let (Ok(client), Ok(server)) = (client, UnixStream::connect(&socket)) else {
                        continue;
                    };
                    scope.spawn(move || join(&client, &server));
                }
            });
        });
        Ok(Self {
            address,
            is_over,
            thread: Some(thread),
        })
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // It waits for a connection.
        let _last = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            // What panicked there is shown already.
            let _ = thread.join();
        }
    }
}

/// Carries bytes between the two until the server has said all.
fn join(client: &TcpStream, server: &UnixStream) {
    thread::scope(|scope| {
        scope.spawn(|| {
            let _is_cut_off = copy(&mut &*client, &mut &*server);
            let _ = server.shutdown(Shutdown::Write);
        });
        let _is_cut_off = copy(&mut &*server, &mut &*client);
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    });
}

fn copy(from: &mut impl io::Read, to: &mut impl io::Write) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(bytes) => to.write_all(&buffer[..bytes])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Has the generator make requests, by these settings, and returns what it says.
fn generate(bridge: &Bridge, directory: &Path, seed: u64, settings: &str) -> Result<String> {
    fs::create_dir_all(directory)?;
    fs::write(directory.join("schemathesis.toml"), settings)?;
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let program = project.context("a folder above")?;
    let program = program.join(".toolchain/schemathesis/bin/schemathesis");
    let server = format!("http://{}", bridge.address);
    let output = Command::new("timeout")
        .arg("600")
        .arg(&program)
        .args([
            "run",
            &format!("{server}/v1/openapi.json"),
            "--url",
            &server,
        ])
        .args(["--seed", &seed.to_string(), "--max-examples", EXAMPLES])
        .args(["--phases", "coverage,fuzzing,stateful", "--checks", CHECKS])
        .args(["--request-timeout", "60", "--suppress-health-check", "all"])
        .args(["--warnings", "off", "--continue-on-failure"])
        .current_dir(directory)
        .env("HYPOTHESIS_STORAGE_DIRECTORY", directory)
        .env("NO_COLOR", "1")
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{}: {}; has `cargo xtask setup` run?\n{SEED}={seed} makes the same requests\n{said}{stderr}",
        program.display(),
        output.status
    );
    Ok(said)
}

/// No request is answered by an error of the server, or otherwise than the document says; and
/// the packets of clients do not notice.
#[test]
fn every_answer_is_as_the_document_says() -> Result<()> {
    let seed = match env::var(SEED) {
        Ok(seed) => seed.parse()?,
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
            now.as_secs()
        }
    };
    println!("{SEED}={seed}");
    let (topology, _servers) = standard("api", TopologyOptions::default())?;
    let services = http_of_each_kind(&topology);
    let balancer = Balancer::start(&topology, &programs::paths().lb, &services)?;
    let bridge = Bridge::start(balancer.socket().to_owned())?;
    let directory = topology.lab.directory();
    // A stream that does not end cannot be compared.
    let events = "[[operations]]\ninclude-operation-id = \"events\"\n\
                  parameters = { \"query.follow\" = \"false\" }\n";
    // Services and backends that there are; those which every other request is about stay.
    let known = "parameters = { \"path.name\" = \"known\", \"path.address\" = \"10.0.9.1:80\" }\n";
    let stay = [
        "removeService",
        "removeBackend",
        "addService",
        "apply",
        "reset",
    ]
    .map(|id| format!("[[operations]]\ninclude-operation-id = \"{id}\"\nenabled = false\n"))
    .concat();
    balancer
        .lb("service add known --address 192.0.2.99:80 --mode full-nat --backend 10.0.9.1:80")?;
    for (name, settings) in [
        ("known", format!("{known}{events}{stay}")),
        ("any", events.to_owned()),
    ] {
        let said = generate(&bridge, &directory.join(name), seed, &settings)?;
        println!("{said}");
        let cases = said.lines().find(|line| line.contains(" generated"));
        let cases = cases.and_then(|line| line.split_whitespace().next()?.parse::<u32>().ok());
        ensure!(cases > Some(500), "{said}");
    }
    drop(bridge);
    // What is left of all that is what the file says.
    balancer.lb("config reset")?;
    balancer.wait_until("all backends are well", lb_lab::Status::is_all_well)?;
    load(&topology, &services, 3)?;
    balancer.stop()
}
