//! TLS towards clients: a certificate and its key from files, read anew on demand.
//!
//! Connections that stand keep the certificate they began with. A pair that cannot be used changes nothing.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// Why a certificate and a key cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{file}: {error}")]
    File { file: PathBuf, error: PemError },
    #[error("{file}: no certificate is in it")]
    Empty { file: PathBuf },
    #[error("{certificate} and {key}: {error}")]
    Pair { certificate: PathBuf, key: PathBuf, error: rustls::Error },
}

/// Where the certificate chain and the key are, and what was read there last.
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    current: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Both in PEM: the server's certificate first and what leads to its root after it; a PKCS#8, PKCS#1 or SEC1 key.
    ///
    /// # Errors
    /// Files that cannot be read, or that do not belong together.
    pub fn open(certificate: &Path, key: &Path) -> Result<Tls, TlsError> {
        let current = RwLock::new(read(certificate, key)?);
        Ok(Tls { certificate: certificate.into(), key: key.into(), current })
    }

    /// Reads the files again, for connections that come from now on.
    ///
    /// # Errors
    /// As [`Tls::open`]; what was read before stays.
    pub fn reload(&self) -> Result<(), TlsError> {
        let fresh = read(&self.certificate, &self.key)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone().into()
    }
}

fn read(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let of = |file: &Path| {
        let file = file.to_path_buf();
        move |error| TlsError::File { file, error }
    };
    let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(of(certificate))?;
    if chain.is_empty() {
        return Err(TlsError::Empty { file: certificate.into() });
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(of(key))?;
    let pair = |error| TlsError::Pair { certificate: certificate.into(), key: key.into(), error };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config =
        versions.and_then(|v| v.with_no_client_auth().with_single_cert(chain, secret)).map_err(pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/certificates/");

    fn file(name: &str) -> PathBuf {
        Path::new(FOLDER).join(name)
    }

    #[test]
    fn what_cannot_be_served_is_named() {
        let error = |certificate: &Path, key: &Path| Tls::open(certificate, key).err().unwrap().to_string();
        assert!(error(&file("none.pem"), &file("server.key")).contains("none.pem: "));
        assert!(error(&file("server.key"), &file("server.key")).contains("server.key: no certificate"));
        assert!(error(&file("server.pem"), &file("server.pem")).contains("server.pem: "));
        // Another's key.
        assert!(error(&file("ca.pem"), &file("server.key")).contains("ca.pem and "));
    }

    #[test]
    fn a_pair_that_is_broken_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
        std::fs::copy(file("server.pem"), &certificate).unwrap();
        std::fs::copy(file("server.key"), &key).unwrap();
        let tls = Tls::open(&certificate, &key).unwrap();
        let first = tls.current.read().unwrap().clone();
        std::fs::write(&certificate, "torn").unwrap();
        assert!(tls.reload().is_err());
        assert!(Arc::ptr_eq(&first, &tls.current.read().unwrap()));
        std::fs::copy(file("server.pem"), &certificate).unwrap();
        tls.reload().unwrap();
        assert!(!Arc::ptr_eq(&first, &tls.current.read().unwrap()));
    }
}
