//! `/v1/models` and `/v1/models/{id}`: answer also while weights load and while the unit drains.
//!
//! An alias is listed as a model whose `root` is the one behind it, as vLLM does.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};

use crate::api::ApiState;
use crate::api::error::ApiError;
use crate::service::ServedModel;
use crate::wire::response::{Model, ModelList};

pub fn routes() -> Router<Arc<ApiState>> {
    // Ids hold slashes (`owner/name`), hence the wildcard.
    Router::new().route("/v1/models", get(list)).route("/v1/models/{*id}", get(retrieve))
}

fn model(served: &ServedModel, id: &str) -> Model {
    Model {
        id: id.to_owned(),
        object: "model".into(),
        created: served.created,
        owned_by: "hashwatt".into(),
        root: Some(served.id.clone()),
        parent: None,
        max_model_len: Some(served.max_model_len),
    }
}

async fn list(State(state): State<Arc<ApiState>>) -> Json<ModelList> {
    let names = |m: &ServedModel| {
        std::iter::once(&m.id).chain(&m.aliases).map(|name| model(m, name)).collect::<Vec<_>>()
    };
    let data = state.service.models().iter().flat_map(names).collect();
    Json(ModelList { object: "list".into(), data })
}

async fn retrieve(
    State(state): State<Arc<ApiState>>,
    Path(id): Path<String>,
) -> Result<Json<Model>, ApiError> {
    Ok(Json(model(state.service.model(Some(&id))?, &id)))
}
