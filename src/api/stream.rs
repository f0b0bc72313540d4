//! The body of a streamed answer: deltas in, SSE frames out.
//!
//! One poll takes all deltas that are ready and hands hyper one frame, so a burst costs one write. The
//! idle timer is armed once and looked at only when there is nothing to send: it moves at most once an
//! interval. Dropping the body (the client is gone) drops the generation, which cancels it. An error
//! after the 200 is an error event, then `[DONE]`.

use std::any::Any;
use std::convert::Infallible;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use http_body::Frame;
use tokio::time::{Instant, Sleep};

use crate::api::chunk::ChunkWriter;
use crate::api::collect;
use crate::api::envelope::panic_message;
use crate::api::error::ApiError;
use crate::api::tally::{Source, Tally};
use crate::clock::{Clock, Tick};
use crate::service::Delta;
use crate::wire::sse;

/// A frame is sent when it has grown to this, even if more is ready.
const FULL_FRAME: usize = 16 << 10;

/// What a stream is made of.
pub struct StreamParts<G> {
    pub generation: G,
    pub writer: ChunkWriter,
    pub tally: Tally,
    pub clock: Clock,
    /// A comment is sent after this long without an event.
    pub keep_alive: Duration,
    pub include_usage: bool,
}

/// The answer to a request with `stream: true`.
pub fn respond<G: Source>(parts: StreamParts<G>) -> Response {
    let idle = Box::pin(tokio::time::sleep(parts.keep_alive));
    let last_sent = parts.clock.now();
    let body = SseBody { parts, out: BytesMut::with_capacity(4096), idle, last_sent, ended: false };
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(sse::CONTENT_TYPE));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct SseBody<G> {
    parts: StreamParts<G>,
    out: BytesMut,
    idle: Pin<Box<Sleep>>,
    last_sent: Tick,
    ended: bool,
}

impl<G: Source> SseBody<G> {
    /// Writes what is ready into the buffer. True when more may come.
    fn take_ready(&mut self, cx: &mut Context<'_>) {
        let mut now = None;
        while !self.ended && self.out.len() < FULL_FRAME {
            // A panic in the layers below ends this stream, not its connection's task.
            let generation = &mut self.parts.generation;
            let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(generation).poll_next(cx)));
            match polled {
                Ok(Poll::Pending) => return,
                Ok(Poll::Ready(Some(delta))) => {
                    let now = *now.get_or_insert_with(|| self.parts.clock.now());
                    self.write(delta, now);
                }
                Ok(Poll::Ready(None)) => self.end(),
                Err(payload) => self.panicked(&*payload),
            }
        }
    }

    fn write(&mut self, delta: Delta, now: Tick) {
        self.parts.tally.saw(&delta, now);
        let writer = &mut self.parts.writer;
        match delta {
            Delta::Text { choice, text, logprobs } => writer.text(&mut self.out, choice, &text, logprobs),
            Delta::Reasoning { choice, text, logprobs } => {
                writer.reasoning(&mut self.out, choice, &text, logprobs);
            }
            Delta::Call { choice, index, id, name, logprobs } => {
                writer.call(&mut self.out, choice, index, &id, &name, logprobs);
            }
            Delta::Arguments { choice, index, text, logprobs } => {
                writer.arguments(&mut self.out, choice, index, &text, logprobs);
            }
            Delta::Finish { choice, reason } => writer.finish(&mut self.out, choice, reason.as_str()),
            // Nothing was shown of it.
            Delta::Anew { .. } => {}
            Delta::Failed(error) => self.fail(&error.into()),
        }
    }

    fn end(&mut self) {
        let usage = self.parts.generation.usage();
        self.parts.tally.settle(usage, self.parts.generation.timings());
        if self.parts.include_usage {
            let usage = collect::wire_usage(usage, self.parts.generation.energy());
            self.parts.writer.usage(&mut self.out, &usage);
        }
        self.out.put_slice(sse::DONE);
        self.ended = true;
    }

    fn fail(&mut self, error: &ApiError) {
        ChunkWriter::error(&mut self.out, error);
        self.out.put_slice(sse::DONE);
        self.ended = true;
    }

    fn panicked(&mut self, payload: &(dyn Any + Send)) {
        tracing::error!(panic = panic_message(payload), "a stream panicked");
        self.parts.tally.failed();
        self.fail(&ApiError::internal("The server failed while generating"));
    }

    /// A keep-alive comment when nothing was sent for the interval; arms the timer for the next.
    fn poll_idle(&mut self, cx: &mut Context<'_>) {
        while self.idle.as_mut().poll(cx).is_ready() {
            let now = self.parts.clock.now();
            let mut left = self.parts.keep_alive.saturating_sub(now.since(self.last_sent));
            if left.is_zero() && self.out.is_empty() {
                self.out.put_slice(sse::PING);
                left = self.parts.keep_alive;
            }
            self.idle.as_mut().reset(Instant::now() + left.max(Duration::from_millis(1)));
        }
    }
}

impl<G: Source> http_body::Body for SseBody<G> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        this.take_ready(cx);
        if this.out.is_empty() {
            this.poll_idle(cx);
        }
        if this.out.is_empty() {
            return Poll::Pending;
        }
        this.last_sent = this.parts.clock.now();
        Poll::Ready(Some(Ok(Frame::data(this.out.split().freeze()))))
    }

    /// Known with the last frame: hyper then writes the end of the body along with it.
    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::sync::Arc;

    use futures_core::Stream;
    use http_body_util::BodyExt;

    use crate::api::chunk::{Identity, Shape};
    use crate::metrics::{Metrics, MetricsConfig, Recorded};
    use crate::service::{Finish, ServiceError, Timings};

    /// `None` is a pause of 60 ms; "panic!" panics.
    struct Script(VecDeque<Option<Delta>>, Option<Pin<Box<Sleep>>>);

    impl Stream for Script {
        type Item = Delta;
        fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Delta>> {
            loop {
                if let Some(pause) = &mut self.1 {
                    std::task::ready!(pause.as_mut().poll(cx));
                    self.1 = None;
                }
                match self.0.pop_front() {
                    Some(Some(Delta::Text { text, .. })) if text == "panic!" => panic!("scripted"),
                    Some(None) => self.1 = Some(Box::pin(tokio::time::sleep(Duration::from_millis(60)))),
                    delta => return Poll::Ready(delta.flatten()),
                }
            }
        }
    }

    impl Source for Script {
        fn usage(&self) -> crate::service::Usage {
            crate::service::Usage {
                prompt_tokens: 5,
                completion_tokens: 2,
                reasoning_tokens: 0,
                right_guesses: 0,
                wrong_guesses: 0,
                cached_tokens: 1,
            }
        }
        fn energy(&self) -> Option<crate::energy::RequestEnergy> {
            None
        }
        fn timings(&self) -> Timings {
            Timings { time_to_first_token: Some(0.1), ..Timings::default() }
        }
    }

    fn text(text: &str) -> Option<Delta> {
        Some(Delta::Text { choice: 0, text: text.into(), logprobs: vec![] })
    }

    const STOP: Option<Delta> = Some(Delta::Finish { choice: 0, reason: Finish::Stop });

    fn recorded() -> Arc<Recorded> {
        let config = MetricsConfig { model_name: "m".into(), vllm_names: false };
        Metrics::new(config, Box::new(Vec::new)).recorded().clone()
    }

    fn body(script: Vec<Option<Delta>>, recorded: &Arc<Recorded>, keep_alive: u64) -> Body {
        let identity = Identity {
            id: "i".into(),
            created: 1,
            model: "m".into(),
            service_tier: None,
            system_fingerprint: None,
        };
        let parts = StreamParts {
            generation: Script(script.into(), None),
            writer: ChunkWriter::new(Shape::Chat, &identity, 1, false, true),
            tally: Tally::new(recorded.clone(), 1),
            clock: Clock::system(),
            keep_alive: Duration::from_millis(keep_alive),
            include_usage: true,
        };
        respond(parts).into_body()
    }

    /// The data of each frame.
    async fn frames(mut body: Body) -> Vec<String> {
        let mut frames = Vec::new();
        while let Some(frame) = body.frame().await {
            frames.push(String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap());
        }
        frames
    }

    #[tokio::test]
    async fn what_is_ready_together_is_one_frame() {
        let recorded = recorded();
        let script = vec![text("a"), text("b"), None, text("c"), STOP];
        let frames = frames(body(script, &recorded, 10_000)).await;
        assert_eq!(frames.len(), 2, "{frames:?}");
        assert_eq!(frames[0].matches("data: ").count(), 3);
        assert!(frames[1].contains("\"usage\":{\"prompt_tokens\":5"));
        assert!(frames[1].ends_with("}\n\ndata: [DONE]\n\n"));
        assert_eq!(recorded.inter_token.count(), 2);
        assert_eq!(recorded.time_to_first_token.count(), 1);
    }

    #[tokio::test]
    async fn a_quiet_stream_pings() {
        let frames = frames(body(vec![text("a"), None, None, STOP], &recorded(), 20)).await;
        let pings = frames.iter().filter(|f| *f == ": ping\n\n").count();
        assert!((2..=6).contains(&pings), "{frames:?}");
        assert!(frames.last().unwrap().ends_with("[DONE]\n\n"));
    }

    #[tokio::test]
    async fn failures_and_panics_are_error_events() {
        let failed = Some(Delta::Failed(ServiceError::Internal("broke".into())));
        let frames_of = frames(body(vec![text("a"), failed, text("never")], &recorded(), 1000)).await;
        let last = frames_of.last().unwrap();
        assert!(last.contains("data: {\"error\":{\"message\":\"broke\",\"type\":\"server_error\""), "{last}");
        assert!(last.ends_with("}}\n\ndata: [DONE]\n\n") && !last.contains("never"));
        let frames_of = frames(body(vec![text("a"), text("panic!")], &recorded(), 1000)).await;
        assert!(frames_of.concat().contains("\"code\":\"internal_error\""));
    }

    #[tokio::test]
    async fn a_dropped_stream_counts_as_aborted() {
        let config = MetricsConfig { model_name: "m".into(), vllm_names: false };
        let metrics = Metrics::new(config, Box::new(Vec::new));
        drop(body(vec![text("a")], metrics.recorded(), 1000));
        assert!(metrics.render(true).unwrap().contains("finished_reason=\"abort\"} 1\n"));
    }
}
