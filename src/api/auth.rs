//! Who asks: a layer over the whole router that lets nothing pass without a key but the probes.
//!
//! Denial is the default: a route that is added tomorrow is guarded, and so is one that does not exist. The layer
//! finds the key's account, holds it to its endpoints and its requests, and hands a [`Caller`] on; what depends on
//! the request's content (model, tier, tokens) is asked of that. Answers say what is left of the key's limits.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::access::{Access, Account, Denied, Refusal, Reservation, Running, Size};
use crate::api::ApiState;
use crate::api::error::ApiError;
use crate::service::{ServedEncoder, ServiceError};
use crate::wire::request::{Parameters, ServiceTier};

/// Paths that answer without a key, byte for byte.
pub const OPEN_PATHS: [&str; 3] = ["/livez", "/readyz", "/health"];
/// Paths that tell a key what it may do: its endpoints are no matter.
const TELLING: [&str; 3] = ["/v1/models", "/v1/usage", "/openapi.json"];

/// What is left of a key's limits by the minute: of requests, of tokens.
pub const ALLOWANCE_HEADERS: [HeaderName; 6] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// Who may read `/metrics` on the serving port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MetricsAccess {
    /// Anybody.
    Open,
    /// As every other route.
    #[default]
    Key,
    /// Nobody: the admin listener has them.
    AdminOnly,
}

/// Who makes a request. Clones are the same request; it is under way until the last is gone.
#[derive(Clone)]
pub struct Caller(Arc<Asking>);

struct Asking {
    access: Arc<Access>,
    /// `None` where no key was needed.
    account: Option<Arc<Account>>,
    path: String,
    reserved: Mutex<Option<Reservation>>,
    /// Held only to be dropped.
    _running: Option<Running>,
}

impl Caller {
    fn new(
        access: &Arc<Access>,
        account: Option<Arc<Account>>,
        request: &Request,
    ) -> Result<Caller, Refusal> {
        let path = request.uri().path();
        let mut running = None;
        if let Some(account) = &account {
            if !TELLING.contains(&path) && !path.starts_with("/v1/models/") {
                account.check_endpoint(path)?;
            }
            if request.method() == Method::POST {
                running = Some(account.begin()?);
            }
        }
        let (access, path, reserved) = (access.clone(), path.to_owned(), Mutex::new(None));
        Ok(Caller(Arc::new(Asking { access, account, path, reserved, _running: running })))
    }

    /// Of a request that has passed [`require_key`].
    pub fn of(request: &Request) -> Caller {
        let caller = request.extensions().get::<Caller>();
        caller.expect("every route lies behind the layer").clone()
    }

    pub fn access(&self) -> &Arc<Access> {
        &self.0.access
    }

    pub fn account(&self) -> Option<&Arc<Account>> {
        self.0.account.as_ref()
    }

    /// The key's id, nothing where none was needed.
    pub fn id(&self) -> &str {
        self.0.account.as_ref().map_or("", |account| &account.id)
    }

    pub fn path(&self) -> &str {
        &self.0.path
    }

    /// Whether a model of these names is there for this key.
    pub fn sees(&self, id: &str, aliases: &[String]) -> bool {
        self.account().is_none_or(|account| account.may_use_model(id, aliases))
    }

    /// Holds what was asked for to the key's scopes, settles which tier `auto` is, and keeps its prompts apart from
    /// others' in the prefix cache.
    ///
    /// # Errors
    /// A model or a tier that the key may not use, an unknown model.
    pub fn permit(&self, state: &ApiState, parameters: &mut Parameters) -> Result<(), ServiceError> {
        let Some(account) = self.account() else { return Ok(()) };
        self.check_model(state, parameters.model.as_deref())?;
        self.permit_tier(state, &mut parameters.service_tier)?;
        // No text of a client holds U+0000, so no salt of a client is another's.
        let own = parameters.cache_salt.take().unwrap_or_default();
        parameters.cache_salt = Some(format!("{}\0{own}", account.id));
        Ok(())
    }

    /// Settles which tier `auto` is.
    ///
    /// # Errors
    /// A tier that the key may not use; joules that are limited and cannot be counted.
    pub fn permit_tier(&self, state: &ApiState, asked: &mut ServiceTier) -> Result<(), Refusal> {
        let Some(account) = self.account() else { return Ok(()) };
        if account.limits.joules_per_day.is_some() && state.service.unit().ledger().is_none() {
            return Err(Refusal::NoMeter);
        }
        let tiers = [ServiceTier::Default, ServiceTier::Priority, ServiceTier::Flex];
        let mut may = tiers.into_iter().filter(|tier| account.may_use_tier(tier.as_str()));
        match *asked {
            ServiceTier::Auto => *asked = may.next().unwrap_or_default(),
            tier if may.any(|one| one == tier) => {}
            tier => {
                let name = tier.as_str().to_owned();
                return Err(Refusal::Forbidden { what: "the service tier", name });
            }
        }
        Ok(())
    }

    /// # Errors
    /// A model that the key may not use, or that does not exist.
    pub fn check_model(&self, state: &ApiState, name: Option<&str>) -> Result<(), ServiceError> {
        let model = state.service.model(name)?;
        Ok(self.check_names(&model.id, &model.aliases)?)
    }

    /// # Errors
    /// A model that the key may not use.
    pub fn check_names(&self, id: &str, aliases: &[String]) -> Result<(), Refusal> {
        match self.sees(id, aliases) {
            true => Ok(()),
            false => Err(Refusal::Forbidden { what: "the model", name: id.chars().take(128).collect() }),
        }
    }

    /// Whether texts may be read by an encoder: its names, and how many tokens they have.
    ///
    /// # Errors
    /// As [`Caller::check_names`] and [`Caller::reserve`].
    pub fn admit(&self, encoder: &ServedEncoder, size: Size) -> Result<(), ServiceError> {
        self.check_names(&encoder.id, &encoder.aliases)?;
        Ok(self.reserve(size)?)
    }

    /// Sets aside what the request may use, until it is settled or gone.
    ///
    /// # Errors
    /// A limit of the key that has no room for it.
    pub fn reserve(&self, size: Size) -> Result<(), Refusal> {
        let Some(account) = self.account() else { return Ok(()) };
        let reservation = account.reserve(size, self.0.access.costs().of(size))?;
        *self.0.reserved.lock().unwrap_or_else(PoisonError::into_inner) = Some(reservation);
        Ok(())
    }

    /// What was set aside.
    pub fn take_reservation(&self) -> Option<Reservation> {
        self.0.reserved.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A duration as Go writes it, as OpenAI's service does: `6m0s`, `1.5s`, `20ms`.
fn go_duration(duration: Duration) -> String {
    let ms = duration.as_nanos().div_ceil(1_000_000);
    let (minutes, rest) = (ms / 60_000, ms % 60_000);
    let seconds = format!("{}s", rest as f64 / 1e3);
    match (minutes, rest) {
        (0, 0) => "0s".into(),
        (0, 1..1000) => format!("{rest}ms"),
        (0, _) => seconds,
        (minutes, _) => format!("{minutes}m{seconds}"),
    }
}

fn tell_allowances(account: &Account, headers: &mut HeaderMap) {
    let [requests, tokens] = account.allowances();
    let [limit_requests, left_requests, reset_requests, limit_tokens, left_tokens, reset_tokens] =
        ALLOWANCE_HEADERS;
    for (allowance, [limit, remaining, reset]) in [
        (requests, [limit_requests, left_requests, reset_requests]),
        (tokens, [limit_tokens, left_tokens, reset_tokens]),
    ] {
        let Some(allowance) = allowance else { continue };
        headers.insert(limit, HeaderValue::from(allowance.limit));
        headers.insert(remaining, HeaderValue::from(allowance.remaining));
        if let Ok(value) = HeaderValue::try_from(go_duration(allowance.reset)) {
            headers.insert(reset, value);
        }
    }
}

/// The layer.
pub async fn require_key(State(state): State<Arc<ApiState>>, mut request: Request, next: Next) -> Response {
    let access = &state.config.access;
    let path = request.uri().path();
    let open = OPEN_PATHS.contains(&path);
    let account = match (path, state.config.metrics) {
        ("/metrics", MetricsAccess::AdminOnly) => {
            return ApiError::unknown_route(request.method().as_str(), path).into_response();
        }
        ("/metrics", MetricsAccess::Open) => Ok(None),
        _ if open => Ok(None),
        _ => access.identify(request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes)),
    };
    let account = match account {
        Ok(account) => account,
        Err(Denied::Wrong) => return ApiError::unauthorized("Incorrect API key provided").into_response(),
        Err(Denied::Missing) => {
            let message = "No API key: send it as `Authorization: Bearer <key>`";
            return ApiError::unauthorized(message).into_response();
        }
    };
    let mut response = match Caller::new(access, account.clone(), &request) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refusal) => ApiError::from(refusal).into_response(),
    };
    if let Some(account) = account {
        tell_allowances(&account, response.headers_mut());
    }
    response
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use tower::ServiceExt;

    use super::*;
    use crate::api::testing::Unit;
    use crate::api::{ApiConfig, ServerConfig, router};
    use crate::clock::Clock;
    use crate::store::{Limits, Scopes, Store};

    /// What all layers and the counting of a request cost, printed: the bound is 150 µs of a processor. Here in one
    /// task, the handler's own work (a small answer) included.
    #[tokio::test]
    async fn what_the_layers_cost() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let access = Access::with_store(None, Store::open(dir.path()).unwrap(), true, clock.clone()).unwrap();
        let many = Some(1 << 40);
        let limits = Limits { requests_per_minute: many, tokens_per_minute: many, ..Limits::default() };
        let bearer = format!("Bearer {}", access.create("a", Scopes::default(), limits).unwrap().secret);
        let unit = Unit::start(ApiConfig { access, ..ApiConfig::default() }, ServerConfig::default()).await;
        let router = router(unit.state.clone());
        const TIMES: u32 = 1000;
        let begun = clock.now();
        for _ in 0..TIMES {
            let request = Request::get("/v1/models").header("authorization", &bearer).body(Body::empty());
            let answer = router.clone().oneshot(request.unwrap()).await.unwrap();
            assert!(answer.status() == 200 && answer.headers().contains_key("x-ratelimit-limit-tokens"));
        }
        println!("a request through all layers: {:?}", clock.now().since(begun) / TIMES);
    }

    #[test]
    fn durations_as_go_writes_them() {
        for (ms, text) in [
            (0, "0s"),
            (20, "20ms"),
            (1500, "1.5s"),
            (360_000, "6m0s"),
            (61_250, "1m1.25s"),
            (60_000, "1m0s"),
        ] {
            assert_eq!(go_duration(Duration::from_millis(ms)), text);
        }
        assert_eq!(go_duration(Duration::from_nanos(1)), "1ms");
    }
}
