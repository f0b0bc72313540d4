//! The store and the admin listeners of a unit: taken where they can be, named where they cannot.
//!
//! A unit serves without a store that it cannot have, unless that has keys: then it would let in whom it should not.

use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::access::{Access, Secret};
use crate::api::ApiState;
use crate::api::admin::{self, AdminListener, AdminState, Token, bind_socket};
use crate::clock::Clock;
use crate::config::Config;
use crate::config::places::AdminAddress;
use crate::store::{Store, StoreError};

/// Where a port of the operator's is by default.
const PORT: u16 = 8001;
const SOCKET: &str = "hashwatt.sock";

/// Whether the configured store has keys, as far as can be seen without taking it.
pub fn has_keys(config: &Config) -> bool {
    config.state_dir.as_deref().is_some_and(|dir| Store::has_keys(dir).unwrap_or(false))
}

/// Who may ask this unit.
///
/// # Errors
/// A store with keys that cannot be had, a newer one, one of another program.
pub fn open(config: &Config, clock: &Clock) -> anyhow::Result<Arc<Access>> {
    let key = config.api_key.as_deref();
    let without = || Access::fixed(key, clock.clone());
    let Some(dir) = &config.state_dir else {
        tracing::warn!("no --state-dir and no home: no keys and no usage are kept");
        return Ok(without());
    };
    let error = match Store::open(dir) {
        Ok(store) => return Ok(Access::with_store(key, store, config.trusts_its_network(), clock.clone())?),
        Err(error @ (StoreError::Newer { .. } | StoreError::Foreign { .. })) => return Err(error.into()),
        Err(error) => error,
    };
    let keys = Store::has_keys(dir).with_context(|| format!("--state-dir {}: {error}", dir.display()))?;
    if keys {
        bail!(
            "--state-dir {}: {error}; it has keys, and without them anybody would be let in: name another \
             --state-dir, or stop who holds it",
            dir.display()
        );
    }
    tracing::warn!(%error, "this unit keeps no keys and no usage; --state-dir names another folder");
    // Should its holder make some, this unit must not stay open.
    Ok(Access::beside(key, dir.clone(), clock.clone()))
}

/// Listeners of the operator, until this is dropped.
pub struct Listening {
    /// For the banner.
    pub lines: Vec<String>,
    /// Each with the inode that was made for it.
    sockets: Vec<(PathBuf, u64)>,
    end: CancellationToken,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.end.cancel();
        for (socket, inode) in &self.sockets {
            // It may be gone, or another unit's by now.
            if std::fs::metadata(socket).is_ok_and(|found| found.ino() == *inode) {
                let _ = std::fs::remove_file(socket);
            }
        }
    }
}

/// Begins to listen to the operator, also while the unit drains.
///
/// # Errors
/// A named address that cannot be had. Of the default ones none is an error.
pub async fn listen(config: &Config, state: &Arc<ApiState>) -> anyhow::Result<Listening> {
    let made = config.admin_token.is_none();
    let token = match &config.admin_token {
        Some(token) => token.clone(),
        None => Secret::new().context("no admin token")?.text().to_owned(),
    };
    let (mut listeners, mut lines) = (Vec::new(), Vec::new());
    let named = config.admin_listen.is_some();
    let addresses = config.admin_listen.clone().unwrap_or_else(|| default_addresses(config, &mut lines));
    for address in addresses {
        match bind(&address, &token).await {
            Ok((listener, line)) => {
                let shown = if made { token.as_str() } else { "as set" };
                lines.push(line.replace("{token}", shown));
                listeners.push((address, listener));
            }
            Err(error) if named => return Err(error.context("--admin-listen")),
            // Another unit has them, or another program.
            Err(error) => {
                lines
                    .push(format!("{error:#}: this one runs without it; --admin-listen names another place"));
            }
        }
    }
    let sockets = listeners.iter().filter_map(|(address, _)| match address {
        AdminAddress::Socket(path) => Some(std::path::absolute(path)),
        AdminAddress::Port(_) => None,
    });
    let sockets = sockets.collect::<Result<Vec<_>, _>>()?;
    if let Some(store) = state.config.access.store() {
        store.tell(sockets.first().map(PathBuf::as_path))?;
    }
    let with_inode = |socket: PathBuf| {
        let inode = std::fs::metadata(&socket).map_or(0, |made| made.ino());
        (socket, inode)
    };
    let sockets = sockets.into_iter().map(with_inode).collect();
    let end = CancellationToken::new();
    let admin = Arc::new(AdminState { access: state.config.access.clone(), unit: Some(state.clone()) });
    for (_, listener) in listeners {
        tokio::spawn(listener.serve(admin::router(admin.clone()), end.clone()));
    }
    Ok(Listening { lines, sockets, end })
}

async fn bind(address: &AdminAddress, token: &str) -> anyhow::Result<(AdminListener, String)> {
    match address {
        AdminAddress::Socket(path) => {
            let listener = bind_socket(path).await?;
            Ok((listener, format!("unix:{}", path.display())))
        }
        AdminAddress::Port(address) => {
            let listener = TcpListener::bind(address).await.with_context(|| format!("{address}"))?;
            let line = format!("http://{} (token: {{token}})", listener.local_addr()?);
            Ok((AdminListener::Port { listener, token: Token::new(token) }, line))
        }
    }
}

fn default_addresses(config: &Config, lines: &mut Vec<String>) -> Vec<AdminAddress> {
    let mut addresses = Vec::new();
    match socket_folder(config) {
        Ok(folder) => addresses.push(AdminAddress::Socket(folder.join(SOCKET))),
        Err(error) => lines.push(format!("no socket: {error:#}")),
    }
    addresses.push(AdminAddress::Port(([127, 0, 0, 1], PORT).into()));
    addresses
}

/// A folder that nobody else may write: the system's for this user, or one in the temporary folder.
fn socket_folder(config: &Config) -> anyhow::Result<PathBuf> {
    if let Some(folder) = config.runtime_dir.as_ref().filter(|folder| folder.is_dir()) {
        return Ok(folder.clone());
    }
    // SAFETY: takes nothing, always succeeds.
    let user = unsafe { libc::geteuid() };
    let folder = std::env::temp_dir().join(format!("hashwatt-{user}"));
    let made = std::fs::DirBuilder::new().mode(0o700).create(&folder);
    match made {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e).context(shown(&folder)),
        _ => {}
    }
    // Anybody may make folders there: it must be one, of this user, and closed to others.
    let found = std::fs::symlink_metadata(&folder).with_context(|| shown(&folder))?;
    if !found.is_dir() || found.uid() != user || found.permissions().mode() & 0o077 != 0 {
        bail!("{}: is not a folder of this user's only", shown(&folder));
    }
    Ok(folder)
}

fn shown(path: &std::path::Path) -> String {
    path.display().to_string()
}

/// The operator's routes: of the unit that holds the store, or of this process, which then holds it.
pub enum Admin {
    Unit(crate::wire::client::Client),
    Here(Arc<AdminState>),
}

impl Admin {
    /// # Errors
    /// A store that cannot be had, and is not a unit's that can be spoken to.
    pub fn find(config: &Config) -> anyhow::Result<Admin> {
        // A socket that is named is meant, if somebody listens there.
        if let Some([AdminAddress::Socket(path), ..]) = config.admin_listen.as_deref()
            && std::os::unix::net::UnixStream::connect(path).is_ok()
        {
            return Ok(Admin::Unit(crate::wire::client::Client::of_socket(path)));
        }
        let dir = config.state_dir.as_ref().context("no --state-dir and no home: there are no keys")?;
        match Store::open(dir) {
            Ok(store) => {
                let access = Access::with_store(None, store, true, Clock::system())?;
                Ok(Admin::Here(Arc::new(AdminState { access, unit: None })))
            }
            Err(StoreError::Held { holder, .. }) if holder.socket.is_some() => {
                let path = holder.socket.unwrap_or_default();
                Ok(Admin::Unit(crate::wire::client::Client::of_socket(&path)))
            }
            Err(error @ StoreError::Held { .. }) => {
                bail!("{error}, which listens on no admin socket: start it with --admin-listen unix:PATH")
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What a route answers.
    ///
    /// # Errors
    /// The message of an answer that is not a success.
    pub fn ask(&self, path: &str, body: Option<serde_json::Value>) -> anyhow::Result<serde_json::Value> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (status, bytes) = runtime.block_on(async {
            match self {
                Admin::Unit(client) => {
                    let mut answer = match &body {
                        Some(body) => client.post_json(path, body.to_string().as_bytes()).await?,
                        None => client.get(path).await?,
                    };
                    anyhow::Ok((answer.status, answer.bytes().await?))
                }
                Admin::Here(state) => Ok(admin::ask(state, path, body.map(|b| b.to_string())).await?),
            }
        })?;
        let answer: serde_json::Value = serde_json::from_slice(&bytes).context("the answer is not JSON")?;
        match answer["error"]["message"].as_str() {
            Some(message) if status >= 400 => bail!("{message}"),
            _ if status >= 400 => bail!("status {status}"),
            _ => Ok(answer),
        }
    }
}
