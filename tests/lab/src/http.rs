//! An HTTP/1.1 client that shows what a load test needs: which backend answered,
//! how it saw the client, and where exactly a connection failed.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::pattern;

/// Most bytes of a transfer that are read or written at once.
const CHUNK: usize = 65_536;

/// The answer to a request, up to its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Status code.
    pub status: u16,
    /// `X-Backend`: the name of the server.
    pub backend: String,
    /// `X-Client`: the client's address as the server sees it.
    pub client: SocketAddr,
    /// `Content-Length`, in bytes.
    pub length: u64,
}

/// A connection that stays open between requests.
#[derive(Debug)]
pub struct Connection {
    server: SocketAddr,
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects; `timeout` is for the connection and for each read and write.
    ///
    /// # Errors
    ///
    /// When the server refuses, or does not answer in time.
    pub fn open(server: SocketAddr, timeout: Duration) -> Result<Self> {
        let open = || -> std::io::Result<TcpStream> {
            let stream = TcpStream::connect_timeout(&server, timeout)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(timeout))?;
            stream.set_write_timeout(Some(timeout))?;
            Ok(stream)
        };
        let stream = open().with_context(|| format!("cannot connect to {server}"))?;
        Ok(Self {
            server,
            stream: BufReader::new(stream),
        })
    }

    /// This end's address.
    ///
    /// # Errors
    ///
    /// When the kernel does not say.
    pub fn local_address(&self) -> Result<SocketAddr> {
        Ok(self.stream.get_ref().local_addr()?)
    }

    /// Asks for `path` and reads the whole answer. With `last`, tells the server to
    /// close afterwards.
    ///
    /// # Errors
    ///
    /// When the connection breaks, the server is too slow, or the answer is not
    /// understood.
    pub fn get(&mut self, path: &str, last: bool) -> Result<(Head, Vec<u8>)> {
        let head = self.request(path, last)?;
        let mut body = vec![0; head.length.try_into()?];
        self.stream
            .read_exact(&mut body)
            .with_context(|| format!("the body of {path} from {} broke off", head.backend))?;
        Ok((head, body))
    }

    /// Asks for `path` and reads the answer up to its body.
    fn request(&mut self, path: &str, last: bool) -> Result<Head> {
        let connection = if last { "close" } else { "keep-alive" };
        // Whole in one write, and so in one packet.
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: {connection}\r\n\r\n",
            self.server
        );
        self.stream
            .get_mut()
            .write_all(request.as_bytes())
            .with_context(|| format!("cannot send the request for {path}"))?;
        self.read_head()
            .with_context(|| format!("no good answer to the request for {path}"))
    }

    fn read_head(&mut self) -> Result<Head> {
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\n") {
            let read = self.stream.read_until(b'\n', &mut text)?;
            ensure!(read > 0, "the server closed the connection");
        }
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut response = httparse::Response::new(&mut headers);
        let Ok(httparse::Status::Complete(_)) = response.parse(&text) else {
            bail!("this is not HTTP: {}", String::from_utf8_lossy(&text));
        };
        let header = |name: &str| -> Result<&str> {
            let header = response
                .headers
                .iter()
                .find(|header| header.name.eq_ignore_ascii_case(name))
                .with_context(|| format!("the answer has no {name}"))?;
            Ok(std::str::from_utf8(header.value)?)
        };
        Ok(Head {
            status: response.code.context("the answer has no status")?,
            backend: header("X-Backend")?.to_owned(),
            client: header("X-Client")?.parse()?,
            length: header("Content-Length")?.parse()?,
        })
    }
}

/// One request on a connection of its own, which must be answered with status 200.
///
/// # Errors
///
/// When it is not, or not in time.
pub fn get(server: SocketAddr, path: &str, timeout: Duration) -> Result<(Head, Vec<u8>)> {
    let (head, body) = Connection::open(server, timeout)?.get(path, true)?;
    ensure!(head.status == 200, "{path} has the status {}", head.status);
    Ok((head, body))
}

/// A download whose bytes are checked as they come.
#[derive(Debug)]
pub struct Transfer {
    connection: Connection,
    head: Head,
    /// Bytes read so far.
    read: u64,
}

impl Transfer {
    /// Asks for `length` bytes, which the server sends at about `rate` bytes a
    /// second, and returns as soon as the answer begins. `timeout` is the longest
    /// silence.
    ///
    /// # Errors
    ///
    /// When the answer does not begin in time.
    pub fn begin(server: SocketAddr, length: u64, rate: u64, timeout: Duration) -> Result<Self> {
        let mut connection = Connection::open(server, timeout)?;
        let head = connection.request(&format!("/bytes/{length}?rate={rate}"), true)?;
        ensure!(
            (head.status, head.length) == (200, length),
            "asked for {length} bytes and was told {head:?}"
        );
        Ok(Self {
            connection,
            head,
            read: 0,
        })
    }

    /// The backend that serves it.
    #[must_use]
    pub fn backend(&self) -> &str {
        &self.head.backend
    }

    /// Reads and checks at least `length` bytes more, or all that is left.
    ///
    /// # Errors
    ///
    /// When the connection breaks or falls silent, or a byte is not the one that was
    /// sent.
    pub fn advance(&mut self, length: u64) -> Result<()> {
        let end = self.read.saturating_add(length).min(self.head.length);
        let mut buffer = vec![0; CHUNK];
        while self.read < end {
            let read = self.connection.stream.read(&mut buffer).with_context(|| {
                format!(
                    "transfer from {} broke at byte {} of {}",
                    self.head.backend, self.read, self.head.length
                )
            })?;
            ensure!(
                read > 0,
                "{} closed the connection at byte {} of {}",
                self.head.backend,
                self.read,
                self.head.length
            );
            pattern::check(&buffer[..read], self.read)?;
            self.read += read as u64;
        }
        Ok(())
    }

    /// Reads and checks all that is left.
    ///
    /// # Errors
    ///
    /// As [`Transfer::advance`], or when more comes than was announced.
    pub fn finish(mut self) -> Result<()> {
        self.advance(u64::MAX)?;
        let trailing = self.connection.stream.read(&mut [0; 1])?;
        ensure!(trailing == 0, "more bytes came after the end");
        Ok(())
    }
}

/// An upload whose bytes the server checks as they come.
#[derive(Debug)]
pub struct Upload {
    connection: Connection,
    length: u64,
    /// Bytes sent so far.
    sent: u64,
}

impl Upload {
    /// Announces `length` bytes, and sends none of them yet. `timeout` is the longest
    /// time that the server may take none of them, and that it may take to answer.
    ///
    /// # Errors
    ///
    /// When the server refuses, or does not answer in time.
    pub fn begin(server: SocketAddr, length: u64, timeout: Duration) -> Result<Self> {
        let mut connection = Connection::open(server, timeout)?;
        let head = format!(
            "POST /bytes HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        connection
            .stream
            .get_mut()
            .write_all(head.as_bytes())
            .context("cannot announce an upload")?;
        Ok(Self {
            connection,
            length,
            sent: 0,
        })
    }

    /// Sends `length` bytes more, or all that is left.
    ///
    /// # Errors
    ///
    /// When the connection breaks, or the server takes nothing for too long.
    pub fn advance(&mut self, length: u64) -> Result<()> {
        let end = self.sent.saturating_add(length).min(self.length);
        let mut buffer = vec![0; CHUNK];
        while self.sent < end {
            let length = (end - self.sent).min(CHUNK as u64) as usize;
            let chunk = &mut buffer[..length];
            pattern::fill(chunk, self.sent);
            let stream = self.connection.stream.get_mut();
            stream.write_all(chunk).with_context(|| {
                format!(
                    "upload to {} broke at byte {} of {}",
                    self.connection.server, self.sent, self.length
                )
            })?;
            self.sent += length as u64;
        }
        Ok(())
    }

    /// Sends all that is left, and returns the answer of the server that has found
    /// every byte to be the one that was sent.
    ///
    /// # Errors
    ///
    /// As [`Upload::advance`], or when a byte was another.
    pub fn finish(mut self) -> Result<Head> {
        self.advance(u64::MAX)?;
        let head = self
            .connection
            .read_head()
            .context("no good answer to an upload")?;
        let mut text = vec![0; head.length.try_into()?];
        self.connection.stream.read_exact(&mut text)?;
        ensure!(
            head.status == 200,
            "{} has the status {}: {}",
            head.backend,
            head.status,
            String::from_utf8_lossy(&text)
        );
        Ok(head)
    }
}
