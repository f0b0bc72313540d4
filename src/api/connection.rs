//! One connection: what it is doing since when, and the watchdog that ends it when it takes too long.
//!
//! hyper times only the reading of a head, and with the same timer the idle time between requests.
//! Here each phase has its own limit, and a reader that takes nothing off the socket has one too. The
//! socket is wrapped ([`WatchedIo`]), the request's service and the answer's body report their phase
//! ([`Activity`]), and [`watch`] wakes a few times a limit to compare: no timer is moved per byte.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::clock::{Clock, Tick};

/// How long a connection may take for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeLimits {
    /// From a request's first byte (or from connecting) to the end of its head.
    pub header: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// For a reader to take anything of what waits for it.
    pub write_stall: Duration,
    /// To read what a refused client still sends, so that it sees the answer.
    pub linger: Duration,
}

impl Default for TimeLimits {
    fn default() -> Self {
        TimeLimits {
            header: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            write_stall: Duration::from_secs(60),
            linger: Duration::from_secs(1),
        }
    }
}

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Idle = 0,
    Head = 1,
    Serving = 2,
    Lingering = 3,
}

/// Shared by the socket, the service and the watchdog of one connection.
#[derive(Debug)]
pub struct Activity {
    clock: Clock,
    phase: AtomicU8,
    since: AtomicU64,
    /// When the socket began to take nothing; 0 while it takes.
    blocked: AtomicU64,
    /// Bytes are left unread on purpose: linger before closing.
    linger: std::sync::atomic::AtomicBool,
}

impl Activity {
    /// A fresh connection owes a head.
    pub fn new(clock: Clock) -> Arc<Activity> {
        let now = clock.now().0;
        Arc::new(Activity {
            clock,
            phase: AtomicU8::new(Phase::Head as u8),
            since: AtomicU64::new(now),
            blocked: AtomicU64::new(0),
            linger: std::sync::atomic::AtomicBool::new(false),
        })
    }

    pub fn enter(&self, phase: Phase) {
        self.since.store(self.clock.now().0, Ordering::Relaxed);
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// Close this connection only after its client has stopped sending, or the limit for it.
    pub fn linger(&self) {
        self.linger.store(true, Ordering::Release);
    }

    fn is(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Acquire) == phase as u8
    }

    /// The limit that is exceeded, in words for the log.
    fn overdue(&self, limits: &TimeLimits) -> Option<&'static str> {
        let now = self.clock.now();
        let passed = |since: &AtomicU64| now.since(Tick(since.load(Ordering::Relaxed)));
        if self.blocked.load(Ordering::Relaxed) != 0 && passed(&self.blocked) > limits.write_stall {
            return Some("its reader takes nothing");
        }
        let (limit, why) = match self.phase.load(Ordering::Acquire) {
            p if p == Phase::Idle as u8 => (limits.idle, "idle"),
            p if p == Phase::Head as u8 => (limits.header, "its request head is not complete"),
            p if p == Phase::Lingering as u8 => (limits.linger, "it was refused"),
            _ => return None,
        };
        (passed(&self.since) > limit).then_some(why)
    }
}

/// Completes when the connection has overstepped a limit, with the reason.
pub async fn watch(activity: Arc<Activity>, limits: TimeLimits) -> &'static str {
    // Lingering may last a little longer than its limit: not worth waking every connection for.
    let shortest = limits.header.min(limits.idle).min(limits.write_stall);
    let pause = (shortest / 4).clamp(Duration::from_millis(10), Duration::from_millis(2500));
    loop {
        tokio::time::sleep(pause).await;
        if let Some(why) = activity.overdue(&limits) {
            return why;
        }
    }
}

/// A socket that reports to its [`Activity`].
pub struct WatchedIo<S> {
    pub inner: S,
    pub activity: Arc<Activity>,
}

impl<S: AsyncRead + Unpin> AsyncRead for WatchedIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if buf.filled().len() > before && self.activity.is(Phase::Idle) {
            self.activity.enter(Phase::Head);
        }
        polled
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> WatchedIo<S> {
    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &polled {
            Poll::Ready(_) => self.activity.blocked.store(0, Ordering::Relaxed),
            Poll::Pending if self.activity.blocked.load(Ordering::Relaxed) == 0 => {
                self.activity.blocked.store(self.activity.clock.now().0.max(1), Ordering::Relaxed);
            }
            Poll::Pending => {}
        }
        polled
    }

    /// Reads and forgets until the client closes; the watchdog limits it.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.activity.is(Phase::Lingering) {
            self.activity.enter(Phase::Lingering);
        }
        let mut scratch = [0u8; 8192];
        // At most this much at a time, so that a flood does not keep the task.
        for _ in 0..16 {
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.inner).poll_read(cx, &mut buf) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(()),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WatchedIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.wrote(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(Pin::new(&mut self.inner).poll_shutdown(cx))?;
        if self.activity.linger.load(Ordering::Acquire) {
            std::task::ready!(self.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}

/// An answer's body; when it is gone the connection is idle and the request in flight no more.
pub struct WatchedBody<B, G> {
    pub inner: B,
    pub activity: Arc<Activity>,
    /// Held only to be dropped with the body.
    pub _in_flight: G,
}

impl<B: Body<Data = Bytes> + Unpin, G: Unpin> Body for WatchedBody<B, G> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B, G> Drop for WatchedBody<B, G> {
    fn drop(&mut self) {
        self.activity.enter(Phase::Idle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_phase_has_its_limit() {
        let clock = Clock::fake();
        let limits = TimeLimits::default();
        let activity = Activity::new(clock.clone());
        clock.advance(limits.header + Duration::from_nanos(1));
        assert_eq!(activity.overdue(&limits), Some("its request head is not complete"));
        activity.enter(Phase::Serving);
        clock.advance(limits.idle * 10);
        assert_eq!(activity.overdue(&limits), None);
        activity.enter(Phase::Idle);
        clock.advance(limits.idle);
        assert_eq!(activity.overdue(&limits), None);
        clock.advance(Duration::from_nanos(1));
        assert_eq!(activity.overdue(&limits), Some("idle"));
        activity.enter(Phase::Lingering);
        clock.advance(limits.linger + Duration::from_nanos(1));
        assert_eq!(activity.overdue(&limits), Some("it was refused"));
    }
}
