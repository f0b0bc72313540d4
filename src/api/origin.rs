//! From where requests may come: which names this server answers to, and which pages may call it.
//!
//! A page in a browser can make requests to any address its machine reaches, this server's included, and a name of
//! its own can be made to lead there (DNS rebinding). Neither carries a key where none is needed. So a request that
//! says it comes from a page (`Origin`) is refused unless that page is this server's own or is allowed, and `Host` can
//! be held to a list. Allowed pages are answered as browsers want it (CORS); without them nothing of it is said.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::api::ApiState;
use crate::api::auth::OPEN_PATHS;
use crate::api::error::ApiError;

/// A browser asks again after this long.
const PREFLIGHT_AGE: Duration = Duration::from_secs(600);

/// What the operator allows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origins {
    /// Names in `Host`, without port; empty: any.
    pub hosts: Vec<String>,
    /// Pages, as `https://app.example`; `*` is any. Empty: only the server's own.
    pub pages: Vec<String>,
}

impl Origins {
    fn allows_host(&self, host: Option<&str>) -> bool {
        self.hosts.is_empty()
            || host.is_some_and(|host| self.hosts.iter().any(|h| h.eq_ignore_ascii_case(host)))
    }

    /// `authority` is the request's `Host`, with its port.
    fn allows_page(&self, origin: &str, authority: Option<&str>) -> bool {
        // A name that leads here may be anybody's, unless the names are listed; an address is this machine's.
        let known = |authority: &str| !self.hosts.is_empty() || is_address(name_of(authority));
        let own = origin.split_once("://").filter(|(scheme, _)| ["http", "https"].contains(scheme));
        let own = own.map(|(_, rest)| rest).filter(|own| known(own));
        self.pages.iter().any(|page| page == "*" || page.eq_ignore_ascii_case(origin))
            || own.zip(authority).is_some_and(|(own, authority)| own.eq_ignore_ascii_case(authority))
    }

    /// What allowed pages are told; `None` where there are none.
    pub(super) fn cors(&self) -> Option<CorsLayer> {
        if self.pages.is_empty() {
            return None;
        }
        let origins = match self.pages.iter().any(|page| page == "*") {
            true => AllowOrigin::any(),
            false => AllowOrigin::list(self.pages.iter().filter_map(|page| HeaderValue::from_str(page).ok())),
        };
        let own = ["x-request-id", "x-energy-joules", "retry-after-ms", "openai-processing-ms"];
        let exposed = own.map(HeaderName::from_static).into_iter().chain(super::auth::ALLOWANCE_HEADERS);
        let exposed = exposed.chain([header::RETRY_AFTER]);
        let layer = CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::POST])
            // Whatever SDKs send along: a page that is allowed may send it.
            .allow_headers(tower_http::cors::AllowHeaders::mirror_request())
            .expose_headers(exposed.collect::<Vec<_>>())
            .max_age(PREFLIGHT_AGE);
        Some(layer)
    }
}

fn is_address(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok()
}

/// The name in a `Host` header, without its port.
fn name_of(authority: &str) -> &str {
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => authority.rsplit_once(':').map_or(authority, |(name, _)| name),
    }
}

/// Refuses what comes by another name, or from a page that is not allowed.
pub async fn guard(State(state): State<Arc<ApiState>>, request: Request, next: Next) -> Response {
    match refusal(&state.config.origins, &request) {
        Some(error) => error.into_response(),
        None => next.run(request).await,
    }
}

fn refusal(origins: &Origins, request: &Request) -> Option<ApiError> {
    let text = |name: HeaderName| request.headers().get(name).map(|value| value.to_str().unwrap_or("?"));
    let authority = text(header::HOST).or(request.uri().authority().map(|a| a.as_str()));
    // Probes come by address, and tell nothing.
    if OPEN_PATHS.contains(&request.uri().path()) {
        return None;
    }
    if !origins.allows_host(authority.map(name_of)) {
        return Some(ApiError::forbidden("host_not_allowed", "This server does not answer to that name"));
    }
    let origin = text(header::ORIGIN)?;
    let message = "Pages of this origin may not call this server; --allowed-origins names those that may";
    (!origins.allows_page(origin, authority)).then(|| ApiError::forbidden("origin_not_allowed", message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Access;
    use crate::api::testing::{Unit, exchange};
    use crate::api::{ApiConfig, ServerConfig};
    use crate::clock::Clock;

    #[test]
    fn names_and_pages() {
        for (authority, name) in
            [("a.example:80", "a.example"), ("a", "a"), ("[::1]:8000", "::1"), ("[::1]", "::1"), ("", "")]
        {
            assert_eq!(name_of(authority), name);
        }
        let open = Origins::default();
        assert!(open.allows_host(None) && open.allows_host(Some("x")));
        assert!(open.allows_page("http://127.0.0.1:8000", Some("127.0.0.1:8000")));
        assert!(!open.allows_page("http://127.0.0.1:9", Some("127.0.0.1:8000")));
        assert!(!open.allows_page("http://rebound.example", Some("rebound.example")));
        for origin in ["null", "https://evil.example", "http://", "x", "ftp://127.0.0.1:8000"] {
            assert!(!open.allows_page(origin, Some("127.0.0.1:8000")), "{origin}");
        }
        let some = Origins { hosts: vec!["unit.example".into()], pages: vec!["https://app.example".into()] };
        assert!(some.allows_host(Some("UNIT.example")) && !some.allows_host(Some("rebound.example")));
        assert!(!some.allows_host(None));
        assert!(some.allows_page("https://app.example", Some("unit.example")));
        assert!(!some.allows_page("https://app.example.evil", Some("unit.example")));
        let any = Origins { pages: vec!["*".into()], ..Origins::default() };
        assert!(any.allows_page("null", None) && any.cors().is_some() && open.cors().is_none());
    }

    /// What a browser would hear: the status and the headers, in small letters.
    async fn heard(unit: &Unit, method: &str, path: &str, headers: &str) -> (u16, String) {
        let request = format!("{method} {path} HTTP/1.1\r\n{headers}connection: close\r\n\r\n");
        let answer = exchange(unit, &request).await.to_lowercase();
        let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        (status, answer)
    }

    #[tokio::test]
    async fn pages_are_refused_unless_they_are_allowed() {
        let unit = Unit::start(ApiConfig::default(), ServerConfig::default()).await;
        let own = format!("host: {}\r\n", unit.address);
        for (headers, status) in [
            (own.clone(), 200),
            (format!("{own}origin: http://{}\r\n", unit.address), 200),
            (format!("{own}origin: https://evil.example\r\n"), 403),
            (format!("{own}origin: null\r\n"), 403),
        ] {
            let (found, answer) = heard(&unit, "GET", "/v1/models", &headers).await;
            assert!(found == status && !answer.contains("access-control"), "{headers}: {answer}");
        }
        let (status, answer) =
            heard(&unit, "OPTIONS", "/v1/models", &format!("{own}origin: http://x.example\r\n")).await;
        assert!(status == 403 && answer.contains("origin_not_allowed"), "{answer}");
    }

    #[tokio::test]
    async fn allowed_pages_are_answered_as_browsers_want_it() {
        let origins = Origins { hosts: vec!["127.0.0.1".into()], pages: vec!["https://app.example".into()] };
        let config = ApiConfig {
            origins,
            access: Access::fixed(Some("a-long-key"), Clock::system()),
            ..ApiConfig::default()
        };
        let unit = Unit::start(config, ServerConfig::default()).await;
        let page = format!("host: {}\r\norigin: https://app.example\r\n", unit.address);
        // The preflight bears no key, and is told what it may send.
        let asks = format!(
            "{page}access-control-request-method: POST\r\naccess-control-request-headers: authorization,content-type\r\n"
        );
        let (status, answer) = heard(&unit, "OPTIONS", "/v1/chat/completions", &asks).await;
        assert_eq!(status, 200, "{answer}");
        for line in [
            "access-control-allow-origin: https://app.example",
            "access-control-allow-headers: authorization,content-type",
            "access-control-allow-methods: get,post",
        ] {
            assert!(answer.contains(line), "{line}: {answer}");
        }
        let with_key = format!("{page}authorization: Bearer a-long-key\r\n");
        let (status, answer) = heard(&unit, "GET", "/v1/models", &with_key).await;
        assert!(
            status == 200 && answer.contains("access-control-allow-origin: https://app.example"),
            "{answer}"
        );
        // A refusal is told too: the page must be able to read why.
        let (status, answer) = heard(&unit, "GET", "/v1/models", &page).await;
        assert!(status == 401 && answer.contains("access-control-allow-origin"), "{answer}");
        let (status, answer) = heard(&unit, "GET", "/v1/models", "host: rebound.example\r\n").await;
        assert!(status == 403 && answer.contains("host_not_allowed"), "{answer}");
    }
}
