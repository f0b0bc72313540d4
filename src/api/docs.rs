//! `/docs`: the description as a page for people, with the feature `docs-page`.
//!
//! One file that holds its script, its style and the description itself: it asks nothing of the network and can be saved.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::http::header;
use axum::routing::get;

use crate::api::ApiState;
use crate::api::openapi::DOCUMENT;

const PAGE: &str = include_str!("docs.html");
/// Its own script and style, requests to this unit, and nothing else.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

static FILLED: LazyLock<String> = LazyLock::new(|| {
    // No text of the description may end the element that holds it.
    PAGE.replacen("DOCUMENT", &DOCUMENT.replace("</", "<\\/"), 1)
});

pub fn routes() -> Router<Arc<ApiState>> {
    let headers =
        [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, POLICY)];
    Router::new().route("/docs", get(move || async move { (headers, FILLED.as_str()) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::testing::Unit;
    use crate::api::{ApiConfig, ServerConfig};

    #[tokio::test]
    async fn the_page_holds_the_description_and_needs_no_other_place() {
        let unit = Unit::start_with(ApiConfig::default(), ServerConfig::default(), super::routes()).await;
        let mut answer = unit.client().get("/docs").await.unwrap();
        assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"));
        let page = String::from_utf8(answer.bytes().await.unwrap()).unwrap();
        let (_, rest) = page.split_once("type=\"application/json\">").unwrap();
        let (held, script) = rest.split_once("</script>").unwrap();
        let held: serde_json::Value = serde_json::from_str(held).unwrap();
        assert_eq!(held, serde_json::from_str::<serde_json::Value>(DOCUMENT).unwrap());
        for outside in ["http://", "https://", "src=", "@import", "innerHTML"] {
            assert!(!script.contains(outside) && !PAGE.contains(outside), "{outside}");
        }
    }
}
