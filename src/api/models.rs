//! `/v1/models` and `/v1/models/{id}`: answer also while weights load and while the unit drains.
//!
//! An alias is listed as a model whose `root` is the one behind it, as vLLM does.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::routing::get;
use axum::{Json, Router};

use crate::api::ApiState;
use crate::api::auth::Caller;
use crate::api::error::ApiError;
use crate::service::{Service, ServiceError};
use crate::wire::response::{Model, ModelList};

pub fn routes() -> Router<Arc<ApiState>> {
    // Ids hold slashes (`owner/name`), hence the wildcard.
    Router::new().route("/v1/models", get(list)).route("/v1/models/{*id}", get(retrieve))
}

/// Everything that is served to this key, under each of its names.
fn all(service: &Service, caller: &Caller) -> Vec<Model> {
    let chat = service.models().iter().map(|m| (&m.id, &m.aliases, m.created, m.max_model_len));
    let encoders = service.encoders().iter().map(|e| (&e.id, &e.aliases, e.created, e.max_model_len));
    let names = |(root, aliases, created, longest): (&String, &_, u64, usize)| -> Vec<Model> {
        let aliases: &Vec<String> = aliases;
        let model = |id: &String| Model {
            id: id.clone(),
            object: "model".into(),
            created,
            owned_by: "hashwatt".into(),
            root: Some(root.clone()),
            parent: None,
            max_model_len: Some(longest),
        };
        std::iter::once(root).chain(aliases).map(model).collect()
    };
    let seen = chat.chain(encoders).filter(|(id, aliases, ..)| caller.sees(id, aliases));
    seen.flat_map(names).collect()
}

async fn list(State(state): State<Arc<ApiState>>, request: Request) -> Json<ModelList> {
    Json(ModelList { object: "list".into(), data: all(&state.service, &Caller::of(&request)) })
}

async fn retrieve(
    State(state): State<Arc<ApiState>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<Model>, ApiError> {
    let found = all(&state.service, &Caller::of(&request)).into_iter().find(|model| model.id == id);
    found.map(Json).ok_or_else(|| ServiceError::unknown(&id).into())
}
