//! What the environment tells of the model hub, in the variables that Hugging Face's tools read.

use std::fmt;
use std::path::PathBuf;

const ENDPOINT: &str = "https://huggingface.co";

/// The hub's address, its cache on this machine, and who asks. The token is not printable.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct HubPlaces {
    /// Without a slash at its end.
    pub endpoint: String,
    /// `None` where the environment tells no home.
    pub cache: Option<PathBuf>,
    pub token: Option<String>,
    /// Read where no token is set.
    pub token_file: Option<PathBuf>,
    pub offline: bool,
}

impl HubPlaces {
    pub fn of(environment: &[(String, String)]) -> HubPlaces {
        let named = |name: &str| {
            let value = environment.iter().find(|(k, _)| k == name).map(|(_, v)| v.trim().to_string());
            value.filter(|v| !v.is_empty())
        };
        let user = named("HOME").map(PathBuf::from);
        let path = |name: &str| {
            let text = named(name)?;
            Some(match (text.strip_prefix("~/"), &user) {
                (Some(rest), Some(user)) => user.join(rest),
                _ => PathBuf::from(text),
            })
        };
        let caches = path("XDG_CACHE_HOME").or_else(|| Some(user.as_ref()?.join(".cache")));
        let home = path("HF_HOME").or_else(|| Some(caches?.join("huggingface")));
        let below = |name: &str| home.as_ref().map(|home| home.join(name));
        let on = |text: String| ["1", "ON", "YES", "TRUE"].contains(&text.to_ascii_uppercase().as_str());
        HubPlaces {
            endpoint: named("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into()).trim_end_matches('/').into(),
            cache: path("HF_HUB_CACHE").or_else(|| below("hub")),
            token: named("HF_TOKEN"),
            token_file: path("HF_TOKEN_PATH").or_else(|| below("token")),
            offline: named("HF_HUB_OFFLINE").is_some_and(on),
        }
    }
}

impl fmt::Debug for HubPlaces {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let HubPlaces { endpoint, cache, offline, .. } = self;
        write!(f, "HubPlaces {{ endpoint: {endpoint:?}, cache: {cache:?}, offline: {offline}, … }}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variables_are_those_of_other_tools() {
        let of = |pairs: &[(&str, &str)]| {
            HubPlaces::of(&pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect::<Vec<_>>())
        };
        let none = of(&[]);
        assert_eq!((none.endpoint.as_str(), none.cache, none.offline), (ENDPOINT, None, false));
        let user = of(&[("HOME", "/home/a"), ("HF_HUB_OFFLINE", "0"), ("HF_TOKEN", " ")]);
        assert_eq!(user.cache, Some("/home/a/.cache/huggingface/hub".into()));
        assert_eq!(user.token_file, Some("/home/a/.cache/huggingface/token".into()));
        assert_eq!((user.token, user.offline), (None, false));
        let xdg = of(&[("HOME", "/home/a"), ("XDG_CACHE_HOME", "/c")]);
        assert_eq!(xdg.cache, Some("/c/huggingface/hub".into()));
        let told = of(&[
            ("HOME", "/home/a"),
            ("HF_HOME", "~/hf"),
            ("HF_ENDPOINT", "http://h:1/"),
            ("HF_HUB_OFFLINE", "True"),
            ("HF_TOKEN", "hf_secret"),
        ]);
        assert_eq!((told.endpoint.as_str(), told.offline), ("http://h:1", true));
        assert_eq!(told.cache, Some("/home/a/hf/hub".into()));
        assert!(!format!("{told:?}").contains("secret"));
        let apart = of(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/cache"), ("HF_TOKEN_PATH", "/t")]);
        assert_eq!((apart.cache, apart.token_file), (Some("/cache".into()), Some("/t".into())));
    }
}
