//! `POST /v1/rerank`, shaped like Jina's and Cohere's, and `POST /v1/score`, shaped like vLLM's.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::post;

use crate::api::ApiState;
use crate::api::auth::Caller;
use crate::api::billing::BilledTexts;
use crate::api::embeddings::{respond, usage};
use crate::api::envelope::random_hex;
use crate::api::error::ApiError;
use crate::api::generate::{check_open, with_body};
use crate::wire::embeddings::{
    Ranked, RankedDocument, Ranking, RerankRequest, Score, ScoreList, ScoreRequest,
};

pub fn routes() -> Router<Arc<ApiState>> {
    Router::new().route("/v1/rerank", post(rerank)).route("/v1/score", post(score))
}

async fn rerank(State(state): State<Arc<ApiState>>, request: Request) -> Result<Response, ApiError> {
    check_open(&state)?;
    let caller = Caller::of(&request);
    let asks = caller.clone();
    let (request, pairs) = with_body(&state, request, move |state, body| {
        let mut request = RerankRequest::parse(body, state.config.unknown_parameters)?;
        asks.permit_tier(state, &mut request.tier)?;
        let pairs = state.service.rerank(&request, &|encoder, size| asks.admit(encoder, size))?;
        Ok((request, pairs))
    })
    .await?;
    let (model, tokens) = (pairs.model.clone(), pairs.prompt_tokens);
    let bill = BilledTexts::new(&pairs, caller, state.service.unit().clock());
    let scored = bill.ended(pairs.scores().await)?;
    let usage = usage(tokens, scored.energy);
    respond(usage, move |usage| {
        let mut order: Vec<(usize, f32)> = scored.of_texts.into_iter().enumerate().collect();
        // Equal ones stay as they were given.
        order.sort_by(|a, b| b.1.total_cmp(&a.1));
        order.truncate(request.top_n.unwrap_or(usize::MAX));
        let mut documents = request.documents;
        let document = |index: usize| RankedDocument { text: std::mem::take(&mut documents[index]) };
        let mut document = request.return_documents.then_some(document);
        let ranked = |(index, relevance_score): (usize, f32)| Ranked {
            index,
            relevance_score,
            document: document.as_mut().map(|d| d(index)),
        };
        let results = order.into_iter().map(ranked).collect();
        Ranking { id: format!("rerank-{}", random_hex()), model, results, usage }
    })
    .await
}

async fn score(State(state): State<Arc<ApiState>>, request: Request) -> Result<Response, ApiError> {
    check_open(&state)?;
    let caller = Caller::of(&request);
    let asks = caller.clone();
    let pairs = with_body(&state, request, move |state, body| {
        let mut request = ScoreRequest::parse(body, state.config.unknown_parameters)?;
        asks.permit_tier(state, &mut request.tier)?;
        state.service.score(&request, &|encoder, size| asks.admit(encoder, size))
    })
    .await?;
    let bill = BilledTexts::new(&pairs, caller, state.service.unit().clock());
    let (model, created, tokens) = (pairs.model.clone(), pairs.created, pairs.prompt_tokens);
    let scored = bill.ended(pairs.scores().await)?;
    let usage = usage(tokens, scored.energy);
    respond(usage, move |usage| {
        let score = |(index, score)| Score { index, object: "score".into(), score };
        let data = scored.of_texts.into_iter().enumerate().map(score).collect();
        let id = format!("score-{}", random_hex());
        ScoreList { id, object: "list".into(), created, model, data, usage }
    })
    .await
}
