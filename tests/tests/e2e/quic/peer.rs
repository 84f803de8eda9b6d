//! Servers and a client of QUIC: a server tells its name and where it sees the client, and
//! then sends as many bytes as it was asked for. Its connection IDs name it.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lb_lab::Host;
use quinn::{
    ClientConfig, Connection, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig,
    IdleTimeout, RecvStream, ServerConfig, TokioRuntime, TransportConfig,
    rustls::{
        RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

/// The name in the servers' certificate.
const NAME: &str = "server.test";
/// What a server may send before the client has read it, in bytes.
const WINDOW: u32 = 64 * 1_024;

/// Makes connection IDs of draft-ietf-quic-load-balancers, in plaintext.
struct ServerIds {
    configuration: u8,
    server_id: Vec<u8>,
    made: u64,
}

impl ConnectionIdGenerator for ServerIds {
    fn generate_cid(&mut self) -> ConnectionId {
        self.made += 1;
        let nonce = self.made.to_be_bytes();
        let length = (self.cid_len() - 1) as u8;
        let first = self.configuration << 5 | length;
        ConnectionId::new(&[&[first][..], &self.server_id, &nonce].concat())
    }

    fn cid_len(&self) -> usize {
        1 + self.server_id.len() + size_of::<u64>()
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// A certificate of all servers, and its key.
pub(crate) struct Identity {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Identity {
    pub(crate) fn new() -> Result<Self> {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
        Ok(Self {
            certificate: made.cert.der().clone(),
            key: made.signing_key.serialize_der(),
        })
    }

    /// What servers and clients agree on. A connection that hears nothing for as long as
    /// `idle` is lost.
    fn transport(idle: Duration) -> Result<Arc<TransportConfig>> {
        let mut transport = TransportConfig::default();
        transport
            .max_idle_timeout(Some(IdleTimeout::try_from(idle)?))
            .stream_receive_window(WINDOW.into())
            // The packets of the wire, one by one.
            .enable_segmentation_offload(false);
        Ok(Arc::new(transport))
    }

    /// Starts a server on `address` of `host`, whose connection IDs say `server_id`. It serves
    /// as long as the runtime runs.
    pub(crate) fn serve(
        &self,
        host: &Host,
        address: SocketAddr,
        server_id: &[u8],
        idle: Duration,
    ) -> Result<()> {
        let server_id = server_id.to_vec();
        let mut config = EndpointConfig::default();
        config.cid_generator(move || {
            Box::new(ServerIds {
                configuration: 0,
                server_id: server_id.clone(),
                made: 0,
            })
        });
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()));
        let mut server = ServerConfig::with_single_cert(vec![self.certificate.clone()], key)?;
        server.transport_config(Self::transport(idle)?);
        let socket = bind(host, address)?;
        let endpoint = Endpoint::new(config, Some(server), socket, Arc::new(TokioRuntime))?;
        let name = host.name().to_owned();
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let name = name.clone();
                tokio::spawn(async move {
                    if let Ok(connection) = incoming.await {
                        // A client that goes is no error here.
                        let _gone = answer(&connection, &name).await;
                    }
                });
            }
        });
        Ok(())
    }

    /// A client at this socket.
    pub(crate) fn client(&self, socket: UdpSocket, idle: Duration) -> Result<Endpoint> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone())?;
        let mut config = ClientConfig::with_root_certificates(Arc::new(roots))?;
        config.transport_config(Self::transport(idle)?);
        let runtime = Arc::new(TokioRuntime);
        let mut endpoint = Endpoint::new(EndpointConfig::default(), None, socket, runtime)?;
        endpoint.set_default_client_config(config);
        Ok(endpoint)
    }
}

/// A socket of a host.
pub(crate) fn bind(host: &Host, address: SocketAddr) -> Result<UdpSocket> {
    host.enter(|| UdpSocket::bind(address))
        .with_context(|| format!("cannot bind {address}"))
}

/// Opens a connection.
pub(crate) async fn connect(endpoint: &Endpoint, service: SocketAddr) -> Result<Connection> {
    let connecting = endpoint.connect(service, NAME)?;
    connecting
        .await
        .with_context(|| format!("no connection to {service}"))
}

/// Answers the requests of a connection until it ends.
async fn answer(connection: &Connection, name: &str) -> Result<()> {
    loop {
        let (mut send, mut receive) = connection.accept_bi().await?;
        let mut length = [0; 8];
        receive.read_exact(&mut length).await?;
        let seen = connection.remote_address().to_string();
        for text in [name, &seen] {
            send.write_all(&[text.len() as u8]).await?;
            send.write_all(text.as_bytes()).await?;
        }
        let mut at = 0;
        let length = u64::from_be_bytes(length);
        while at < length {
            let part = (length - at).min(16 * 1_024);
            send.write_all(&bytes(at, part as usize)).await?;
            at += part;
        }
        send.finish()?;
    }
}

/// Bytes of what servers send, from this one on.
fn bytes(from: u64, length: usize) -> Vec<u8> {
    let at = |index: u64| (index ^ index >> 8 ^ index >> 16) as u8;
    (from..).take(length).map(at).collect()
}

/// An answer that is being read.
pub(crate) struct Answer {
    receive: RecvStream,
    /// Name of the server.
    pub(crate) name: String,
    /// Where it has seen the client.
    pub(crate) seen: SocketAddr,
    read: u64,
}

impl Answer {
    /// Asks for this many bytes, and reads what comes before them.
    pub(crate) async fn to(connection: &Connection, length: u64) -> Result<Self> {
        let (mut send, mut receive) = connection.open_bi().await?;
        send.write_all(&length.to_be_bytes()).await?;
        send.finish()?;
        let name = text(&mut receive).await?;
        let seen = text(&mut receive).await?.parse()?;
        Ok(Self {
            receive,
            name,
            seen,
            read: 0,
        })
    }

    /// Reads on until that many bytes have come in all, and checks them.
    pub(crate) async fn read_to(&mut self, end: u64) -> Result<()> {
        let mut part = vec![0; 8 * 1_024];
        while self.read < end {
            let most = (end - self.read).min(part.len() as u64) as usize;
            let got = self.receive.read(&mut part[..most]).await?;
            let got = got.context("the answer ends too early")?;
            ensure!(
                part[..got] == bytes(self.read, got),
                "wrong bytes behind {}",
                self.read
            );
            self.read += got as u64;
        }
        Ok(())
    }
}

/// A text with its length before it.
async fn text(receive: &mut RecvStream) -> Result<String> {
    let mut length = [0];
    receive.read_exact(&mut length).await?;
    let mut text = vec![0; length[0].into()];
    receive.read_exact(&mut text).await?;
    Ok(String::from_utf8(text)?)
}
