//! One exchange over HTTP/2 (RFC 9113), as `https` and `grpc` have it.

use std::future;

use h2::client;
use hyper::{HeaderMap, Request, Uri, body::Bytes};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{ProbeError, probe::shown};

/// An answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    /// The first bytes of its body, as many as were wanted.
    pub(super) body: Vec<u8>,
    /// What came behind the body, if all of it was read.
    pub(super) trailers: HeaderMap,
}

impl From<h2::Error> for ProbeError {
    fn from(error: h2::Error) -> Self {
        match error.is_io() {
            true => error.into_io().map_or(Self::Closed, Self::from),
            false => Self::Http2(shown(error.to_string().as_bytes())),
        }
    }
}

/// The address of a resource.
pub(super) fn uri(scheme: &str, host: &str, path: &str) -> Result<Uri, ProbeError> {
    Uri::builder()
        .scheme(scheme)
        .authority(host)
        .path_and_query(path)
        .build()
        .map_err(|error| ProbeError::Impossible(error.to_string()))
}

/// Sends a request and reads its answer, at most `limit` bytes of the body and then some.
pub(super) async fn exchange<S>(
    stream: S,
    request: Request<()>,
    body: Option<Bytes>,
    limit: usize,
) -> Result<Answer, ProbeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (sender, connection) = client::handshake(stream).await?;
    let exchange = async {
        let mut sender = sender.ready().await?;
        let (answer, mut stream) = sender.send_request(request, body.is_none())?;
        if let Some(body) = body {
            stream.send_data(body, true)?;
        }
        let (head, mut rest) = answer.await?.into_parts();
        let mut answer = Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body: Vec::new(),
            trailers: HeaderMap::new(),
        };
        while answer.body.len() < limit {
            let Some(bytes) = rest.data().await else {
                answer.trailers = rest.trailers().await?.unwrap_or_default();
                break;
            };
            let bytes = bytes?;
            rest.flow_control().release_capacity(bytes.len())?;
            answer.body.extend(bytes);
        }
        Ok(answer)
    };
    // The connection moves what the exchange says and hears. Its end is no answer: what is
    // there of one may have been heard before.
    let moving = async {
        let _end = connection.await;
        future::pending::<()>().await;
    };
    tokio::select! {
        answer = exchange => answer,
        () = moving => unreachable!("it waits for ever"),
    }
}
