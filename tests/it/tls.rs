//! TLS: who trusts the site's own CA reaches a unit behind a proxy that ends it, and one that speaks it itself; who
//! does not is told why.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::serving::{Running, serve};

const CA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/certificates/ca.pem");

/// Another CA than the one that signed.
const STRANGER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/certificates/server.pem");

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

    for arguments in [&chat[..], &doctor[..]] {
        let refused = hashwatt(STRANGER, arguments, "hello\n");
        let said = String::from_utf8_lossy(&[refused.stdout, refused.stderr].concat()).into_owned();
        assert!(!refused.status.success() && said.contains("certificate"), "{arguments:?}: {said}");
    }
}

/// The server as a process of its own, on a free port; its banner says where.
struct Process {
    child: Child,
    url: String,
    /// Read on by nobody, and open: it prints more.
    _banner: Lines<BufReader<ChildStdout>>,
    /// Its state, apart from other tests' and the user's.
    _state: tempfile::TempDir,
}

impl Process {
    fn start(arguments: &[&str]) -> Process {
        let state = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_hashwatt"))
            .args(["--port", "0", "--admin-listen", "none"])
            .env("HASHWATT_STATE_DIR", state.path())
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut banner = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = banner.by_ref().find_map(|line| {
            let line = line.unwrap();
            let rest = line.trim().strip_prefix("listen")?;
            rest.trim().split("/v1").next().map(str::to_string)
        });
        Process { child, url: url.expect("a banner"), _banner: banner, _state: state }
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a process of ours, which is not waited for before the end.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_unit_speaks_tls_itself_and_reads_its_certificate_again() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/certificates/");
    std::fs::copy(format!("{own}server.pem"), &certificate).unwrap();
    std::fs::copy(format!("{own}server.key"), &key).unwrap();
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let process = Process::start(&["--ssl-certfile", certificate, "--ssl-keyfile", key]);
    let url = &process.url;
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    let ask = |trusted: &str| hashwatt(trusted, &["chat", "--url", url], "What is hashprice?\n");
    let answered = ask(CA);
    assert!(
        answered.status.success() && String::from_utf8_lossy(&answered.stdout).contains("Hashprice"),
        "{answered:?}"
    );
    let refused = ask(STRANGER);
    assert!(!refused.status.success(), "{refused:?}");
    // A torn pair, read on SIGHUP, changes nothing; and no plain text comes through.
    std::fs::write(certificate, "torn").unwrap();
    process.signal(libc::SIGHUP);
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(ask(CA).status.success());
    let plain = url.replacen("https", "http", 1);
    assert!(!hashwatt(CA, &["chat", "--url", &plain], "x\n").status.success());
}

#[test]
fn a_certificate_without_its_key_is_refused_before_anything_else() {
    for (arguments, word) in [
        (vec!["serve", "--ssl-certfile", "c.pem"], "ssl-keyfile"),
        (vec!["serve", "--ssl-keyfile", "k.pem"], "ssl-certfile"),
        (vec!["serve", "--check", "--ssl-certfile", "none.pem", "--ssl-keyfile", "none.key"], "none.pem"),
    ] {
        let output = hashwatt(CA, &arguments, "");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(word), "{error}");
    }
}
