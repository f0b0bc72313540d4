//! A unit behind a proxy that ends TLS: who trusts the site's own CA reaches it, who does not is told why.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::serving::{Running, serve};

const CA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/certificates/ca.pem");

/// An `https` URL that leads to the unit; its certificate is signed by [`CA`].
fn behind_tls(unit: &Running) -> String {
    let certificate = CertificateDer::from_pem_slice(include_bytes!("certificates/server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("certificates/server.key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = unit.runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let to = unit.url.strip_prefix("http://").unwrap().to_string();
    unit.runtime.spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (acceptor, to) = (acceptor.clone(), to.clone());
            tokio::spawn(async move {
                let Ok(mut client) = acceptor.accept(client).await else { return };
                let mut unit = TcpStream::connect(to).await.unwrap();
                // Either side may leave; the other then sees it.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut unit).await;
            });
        }
    });
    format!("https://{address}")
}

fn hashwatt(trusted: &str, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_hashwatt"))
        .args(arguments)
        .env("SSL_CERT_FILE", trusted)
        .env_remove("SSL_CERT_DIR")
        .env("NO_PROXY", "*")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_sites_own_ca_is_trusted_where_it_is_given() {
    let unit = serve(&[("threads", "1")]);
    let url = behind_tls(&unit);
    let chat = ["chat", "--url", url.as_str()];
    // Any number that a server tells serves as watts.
    let meter = format!("http:{url}/v1/models#data[0].max_model_len");
    let doctor = ["doctor", "--json", "--meter", meter.as_str()];

    let answer = hashwatt(CA, &chat, "What is hashprice?\n");
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(answer.status.success() && text.contains("hash"), "{text} {answer:?}");
    let found = String::from_utf8_lossy(&hashwatt(CA, &doctor, "").stdout).into_owned();
    assert!(found.contains(&format!("{url}/v1/models#data[0].max_model_len (node, integrated)")), "{found}");

    // Another CA than the one that signed.
    let stranger = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/certificates/server.pem");
    for arguments in [&chat[..], &doctor[..]] {
        let refused = hashwatt(stranger, arguments, "hello\n");
        let said = String::from_utf8_lossy(&[refused.stdout, refused.stderr].concat()).into_owned();
        assert!(!refused.status.success() && said.contains("certificate"), "{arguments:?}: {said}");
    }
}
