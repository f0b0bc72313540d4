//! Where a unit keeps things and is spoken to, when nothing is said: the folders of the XDG base directories.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::hub::HubPlaces;

/// What the environment tells of the user's folders, and of the model hub.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// For what outlives the process.
    pub state: Option<PathBuf>,
    /// For sockets; of this user only.
    pub runtime: Option<PathBuf>,
    pub hub: HubPlaces,
}

impl Places {
    pub fn of(environment: &[(String, String)]) -> Places {
        let named = |name: &str| {
            let value = environment.iter().find(|(k, _)| k == name).map(|(_, v)| PathBuf::from(v));
            // The specification wants others to be ignored.
            value.filter(|path| path.is_absolute())
        };
        let state = named("XDG_STATE_HOME").or_else(|| Some(named("HOME")?.join(".local/state")));
        Places {
            state: state.map(|dir| dir.join("hashwatt")),
            runtime: named("XDG_RUNTIME_DIR"),
            hub: HubPlaces::of(environment),
        }
    }
}

/// Where the admin endpoints are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    Socket(PathBuf),
    Port(SocketAddr),
}

/// `unix:PATH` and `HOST:PORT`, separated by commas; `none`; `None` is `auto`.
pub fn parse_admin_listen(text: &str) -> Result<Option<Vec<AdminAddress>>, String> {
    if text == "auto" {
        return Ok(None);
    }
    if text == "none" {
        return Ok(Some(Vec::new()));
    }
    let one = |text: &String| match text.strip_prefix("unix:") {
        Some("") => Err("has a socket without a path".to_string()),
        Some(path) => Ok(AdminAddress::Socket(path.into())),
        None => {
            let port = text.parse().map(AdminAddress::Port);
            port.map_err(|_| format!("{text:?} is not unix:PATH, ADDRESS:PORT, auto or none"))
        }
    };
    super::list(text).iter().map(one).collect::<Result<Vec<_>, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_by_the_environment() {
        let of = |pairs: &[(&str, &str)]| {
            Places::of(&pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<Vec<_>>())
        };
        assert_eq!((of(&[]).state, of(&[]).runtime), (None, None));
        let home = of(&[("HOME", "/home/a"), ("XDG_STATE_HOME", "relative")]);
        assert_eq!(home.state, Some("/home/a/.local/state/hashwatt".into()));
        let xdg = of(&[("HOME", "/home/a"), ("XDG_STATE_HOME", "/s"), ("XDG_RUNTIME_DIR", "/run/user/1")]);
        assert_eq!((xdg.state, xdg.runtime), (Some("/s/hashwatt".into()), Some("/run/user/1".into())));
    }

    #[test]
    fn admin_addresses() {
        assert_eq!(parse_admin_listen("auto"), Ok(None));
        assert_eq!(parse_admin_listen("none"), Ok(Some(vec![])));
        let both = parse_admin_listen("unix:/run/a.sock,127.0.0.1:9").unwrap().unwrap();
        assert_eq!(
            both,
            [AdminAddress::Socket("/run/a.sock".into()), AdminAddress::Port(([127, 0, 0, 1], 9).into())]
        );
        assert!(parse_admin_listen("unix:").is_err() && parse_admin_listen("8001").is_err());
    }
}
