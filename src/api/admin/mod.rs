//! What only the operator may ask: keys, everybody's usage, backups, metrics, the unit's state.
//!
//! A router of its own on listeners of its own; nothing of it is on the serving port. The command line asks the same
//! routes, in a process of its own where no unit runs.

mod listen;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tower::ServiceExt;

pub use listen::{AdminListener, BindError, Token, bind_socket};

use crate::access::{Access, AccessError, Made};
use crate::api::error::ApiError;
use crate::api::usage::{self, Days};
use crate::api::{ApiState, envelope, metrics, openapi};
use crate::error::{Class, Classified};
use crate::service::ServiceError;
use crate::store::{KeyRecord, Limits, Scopes};
use crate::unit;

/// What the admin routes work on.
pub struct AdminState {
    pub access: Arc<Access>,
    /// The unit, where one runs.
    pub unit: Option<Arc<ApiState>>,
}

/// All admin routes.
pub fn router(state: Arc<AdminState>) -> Router {
    Router::new()
        .route("/admin/keys", get(list).post(create))
        .route("/admin/keys/revoke", post(revoke))
        .route("/admin/keys/rotate", post(rotate))
        .route("/admin/usage", get(everybodys_usage))
        .route("/admin/backup", post(backup))
        .route("/admin/status", get(status))
        .route("/metrics", get(all_metrics))
        .fallback(|request: Request| async move {
            ApiError::unknown_route(request.method().as_str(), request.uri().path())
        })
        .method_not_allowed_fallback(|request: Request| async move {
            ApiError::wrong_method(request.method().as_str(), request.uri().path())
        })
        .layer(from_fn(net))
        .with_state(state)
}

/// A handler that panics ends its request.
async fn net(request: Request, next: Next) -> Result<Response, ApiError> {
    envelope::catch_panic(next.run(request)).await.map_err(|what| {
        tracing::error!(panic = what, "an admin handler panicked");
        ApiError::internal("The server failed while handling this request")
    })
}

impl From<AccessError> for ApiError {
    fn from(error: AccessError) -> ApiError {
        let message = error.to_string();
        match (&error, error.class()) {
            (AccessError::NoStore(_), _) => ApiError::not_found(message),
            (AccessError::Invalid { param, .. }, _) => ApiError::invalid(message, Some(param)),
            (_, Class::InvalidRequest) => ApiError::invalid(message, None),
            (_, Class::NotFound) => ApiError::not_found(message),
            (_, Class::Overloaded) => ApiError::overloaded(message),
            // A file of the operator's: the path and what is wrong with it.
            (_, Class::Configuration) => ApiError::invalid(message, None),
            _ => ApiError::internal(message),
        }
    }
}

/// Runs what waits for the store where it may.
pub(super) async fn blocking<T: Send + 'static>(
    access: &Arc<Access>,
    work: impl FnOnce(&Access) -> Result<T, AccessError> + Send + 'static,
) -> Result<T, ApiError> {
    let access = access.clone();
    let done = tokio::task::spawn_blocking(move || work(&access)).await;
    done.map_err(|_| ApiError::internal("The store's task failed"))?.map_err(ApiError::from)
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|e| ApiError::invalid(format!("The body: {e}"), None))
}

/// A key as it is told, without anything secret.
fn told(key: &KeyRecord) -> Value {
    json!({
        "object": "key", "id": key.id, "name": key.name, "shown": key.shown, "created": key.created,
        "revoked": key.revoked, "scopes": key.scopes, "limits": key.limits,
        "previous_until": key.previous.map(|(_, until)| until),
    })
}

fn told_once(made: &Made) -> Json<Value> {
    let mut told = told(&made.key);
    told["secret"] = made.secret.clone().into();
    Json(told)
}

async fn list(State(state): State<Arc<AdminState>>) -> Result<Json<Value>, ApiError> {
    let keys = blocking(&state.access, Access::keys).await?;
    Ok(Json(json!({"object": "list", "data": keys.iter().map(told).collect::<Vec<_>>()})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    name: String,
    #[serde(default)]
    scopes: Scopes,
    #[serde(default)]
    limits: Limits,
}

async fn create(State(state): State<Arc<AdminState>>, body: Bytes) -> Result<Json<Value>, ApiError> {
    let Create { name, scopes, limits } = parse(&body)?;
    let said: Value = parse(&body)?;
    for list in ["models", "endpoints", "tiers"] {
        if said["scopes"][list].as_array().is_some_and(Vec::is_empty) {
            let message = format!("{list}: an empty list lets nothing pass; leave it out for all");
            return Err(ApiError::invalid(message, Some(list)));
        }
    }
    if let Some(path) = scopes.endpoints.iter().find(|path| !openapi::is_path(path)) {
        let known = openapi::paths().join(", ");
        let message = format!("endpoints: {path:?} is none of {known}");
        return Err(ApiError::invalid(message, Some("endpoints")));
    }
    if let (Some(unit), models) = (&state.unit, &scopes.models) {
        for model in models {
            if !unit.service.serves(model) {
                return Err(ServiceError::unknown(model).into());
            }
        }
    }
    Ok(told_once(&blocking(&state.access, move |access| access.create(&name, scopes, limits)).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    /// Id or name.
    key: String,
}

async fn revoke(State(state): State<Arc<AdminState>>, body: Bytes) -> Result<Json<Value>, ApiError> {
    let Named { key } = parse(&body)?;
    Ok(Json(told(&blocking(&state.access, move |access| access.revoke(&key)).await?)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rotate {
    key: String,
    #[serde(default)]
    grace_seconds: u64,
}

async fn rotate(State(state): State<Arc<AdminState>>, body: Bytes) -> Result<Json<Value>, ApiError> {
    let Rotate { key, grace_seconds } = parse(&body)?;
    let grace = Duration::from_secs(grace_seconds);
    Ok(told_once(&blocking(&state.access, move |access| access.rotate(&key, grace)).await?))
}

async fn everybodys_usage(
    State(state): State<Arc<AdminState>>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let mut query = usage::parse(request.uri().query().unwrap_or_default(), &Days::All)?;
    if let Some(named) = query.key.take() {
        query.key = Some(blocking(&state.access, move |access| access.id_of(&named)).await?);
    }
    usage::answer(&state.access, query).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Backup {
    path: PathBuf,
}

async fn backup(State(state): State<Arc<AdminState>>, body: Bytes) -> Result<Json<Value>, ApiError> {
    let Backup { path } = parse(&body)?;
    let told = path.display().to_string();
    blocking(&state.access, move |access| access.backup(&path)).await?;
    Ok(Json(json!({"object": "backup", "path": told})))
}

async fn status(State(state): State<Arc<AdminState>>) -> Json<Value> {
    let unit = state.unit.as_ref().map(|api| {
        let unit = api.service.unit();
        json!({
            "state": match unit.state() {
                unit::State::Loading => "loading",
                unit::State::Ready if unit.is_ready() => "ready",
                unit::State::Ready => "down",
                unit::State::Draining => "draining",
            },
            "models": api.service.models().iter().map(|m| &m.id).collect::<Vec<_>>(),
            "requests": unit.live_requests(),
        })
    });
    Json(json!({
        "object": "status", "version": env!("CARGO_PKG_VERSION"), "unit": unit,
        "authentication": if state.access.is_open() { "off" } else { "on" },
        "store": state.access.store().map(|store| store.path().display().to_string()),
    }))
}

async fn all_metrics(State(state): State<Arc<AdminState>>, request: Request) -> Result<Response, ApiError> {
    let unit = state.unit.as_ref().ok_or_else(|| ApiError::not_found("No unit runs here"))?;
    metrics::render(&unit.metrics, request.headers())
}

/// Asks these routes without a listener: status and body.
///
/// # Errors
/// A path that is none, a body that breaks off.
pub async fn ask(
    state: &Arc<AdminState>,
    path: &str,
    body: Option<String>,
) -> Result<(u16, Vec<u8>), axum::Error> {
    let method = if body.is_some() { axum::http::Method::POST } else { axum::http::Method::GET };
    let request = Request::builder().method(method).uri(path).body(Body::from(body.unwrap_or_default()));
    let request = request.map_err(axum::Error::new)?;
    let answer = router(state.clone()).oneshot(request).await.unwrap_or_else(|never| match never {});
    let status = answer.status().as_u16();
    Ok((status, axum::body::to_bytes(answer.into_body(), usize::MAX).await?.to_vec()))
}
