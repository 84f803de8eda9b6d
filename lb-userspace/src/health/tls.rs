//! TLS 1.2 and 1.3 towards a backend.

use std::{
    io,
    sync::{Arc, OnceLock},
};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore,
        SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{
            self, CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature,
            verify_tls13_signature,
        },
        pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    },
};

use super::{ProbeError, Target, probe::shown};
use crate::state::{Alpn, TlsSpec};

/// Protocols that are offered (RFC 7301).
#[derive(Clone, Copy)]
pub(super) enum Protocols<'a> {
    /// The server need not take any.
    Preferred(&'a [Alpn]),
    /// It must take one.
    Required(&'a [Alpn]),
}

/// Makes a connection one of TLS. Returns the protocol that the server has taken, too.
///
/// The server is known by the name in `tls`, else by that of `host`, else by its address.
pub(super) async fn connect(
    stream: TcpStream,
    target: &Target,
    host: Option<&str>,
    tls: &TlsSpec,
    protocols: Protocols<'_>,
) -> Result<(TlsStream<TcpStream>, Option<Alpn>), ProbeError> {
    let (Protocols::Preferred(offered) | Protocols::Required(offered)) = protocols;
    let name = server_name(target, host, tls)?;
    let mut config = config(tls).await?;
    config.alpn_protocols = offered.iter().map(|word| word.as_str().into()).collect();
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await?;
    let taken = stream.get_ref().1.alpn_protocol();
    let taken = taken.and_then(|taken| {
        let same = |word: &&Alpn| word.as_str().as_bytes() == taken;
        offered.iter().find(same).copied()
    });
    if taken.is_none() && matches!(protocols, Protocols::Required(_)) {
        return Err(none_taken(offered));
    }
    Ok((stream, taken))
}

fn none_taken(offered: &[Alpn]) -> ProbeError {
    let words: Vec<_> = offered.iter().map(|word| word.as_str()).collect();
    ProbeError::Alpn(words.join(", "))
}

fn server_name(
    target: &Target,
    host: Option<&str>,
    tls: &TlsSpec,
) -> Result<ServerName<'static>, ProbeError> {
    // Without the port that may stand behind it.
    let host = host.map(|host| match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    });
    let host = host.map(|host| host.trim_start_matches('[').trim_end_matches(']'));
    let Some(name) = tls.server_name.as_deref().or(host) else {
        return Ok(ServerName::from(target.name().ip()));
    };
    ServerName::try_from(name.to_owned())
        .map_err(|_| ProbeError::Impossible(format!("`{name}` is no name of a server")))
}

async fn config(tls: &TlsSpec) -> Result<ClientConfig, ProbeError> {
    let provider = provider();
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| ProbeError::Impossible(error.to_string()))?;
    if !tls.verify {
        let anyone = Arc::new(Anyone(provider.signature_verification_algorithms));
        return Ok(config
            .dangerous()
            .with_custom_certificate_verifier(anyone)
            .with_no_client_auth());
    }
    let roots = match &tls.ca {
        Some(path) => {
            // Read for each check, so that a renewed file counts from the next one on.
            let wrong =
                |what: String| ProbeError::Impossible(format!("`{}`: {what}", path.display()));
            let pem = tokio::fs::read(path)
                .await
                .map_err(|error| wrong(error.to_string()))?;
            let roots = roots_of(&pem).map_err(|error| wrong(error.to_string()))?;
            if roots.is_empty() {
                return Err(wrong("there is no certificate in it".to_owned()));
            }
            Arc::new(roots)
        }
        None => {
            let roots = tokio::task::spawn_blocking(roots_of_host).await;
            roots.map_err(|error| ProbeError::Impossible(error.to_string()))?
        }
    };
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(crypto::ring::default_provider())))
}

fn roots_of(pem: &[u8]) -> Result<RootCertStore, rustls::pki_types::pem::Error> {
    let mut roots = RootCertStore::empty();
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>()?;
    roots.add_parsable_certificates(certificates);
    Ok(roots)
}

/// The authorities that this host trusts, as they were when they were first asked for.
fn roots_of_host() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let load = || {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "a certificate of this host cannot be read");
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        Arc::new(roots)
    };
    Arc::clone(ROOTS.get_or_init(load))
}

/// What an error of a connection says, if it is one of TLS.
pub(super) fn reason(error: &io::Error) -> Option<ProbeError> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(ProbeError::Tls(match error {
        rustls::Error::InvalidMessage(_) => "the answer is not TLS".to_owned(),
        rustls::Error::InvalidCertificate(error) => certificate(error),
        rustls::Error::AlertReceived(alert) => {
            format!("the server sent the alert {alert:?}")
        }
        other => shown(other.to_string().as_bytes()),
    }))
}

fn certificate(error: &CertificateError) -> String {
    use CertificateError as Error;
    match error {
        // The latter where another authority has the same name.
        Error::UnknownIssuer | Error::BadSignature => {
            "the certificate is of an unknown authority".to_owned()
        }
        Error::Expired | Error::ExpiredContext { .. } => "the certificate has expired".to_owned(),
        Error::NotValidYet | Error::NotValidYetContext { .. } => {
            "the certificate is not valid yet".to_owned()
        }
        Error::NotValidForName | Error::NotValidForNameContext { .. } => {
            "the certificate is for another name".to_owned()
        }
        other => format!("the certificate is not valid: {other:?}"),
    }
}

/// Takes every certificate, as long as its owner has the key to it.
#[derive(Debug)]
struct Anyone(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
