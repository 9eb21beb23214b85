//! The timeout for the heads of a connection's requests.
//!
//! hyper sets a timer before each request and drops it once the head has arrived. Adding a timer to the runtime's queue
//! and removing it again costs more than reading a small head, and hardly any timer ever fires. So a connection keeps
//! one timer in the queue, which is only moved when it fires too early.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use hyper::rt::{Sleep, Timer};
use hyper_util::rt::TokioTimer;

/// The timers of one connection, of which at most one is active.
#[derive(Default, Clone)]
pub(super) struct HeadTimer(Arc<Mutex<Option<Pin<Box<tokio::time::Sleep>>>>>);

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(HeadSleep { timer: self.clone(), deadline })
    }

    fn now(&self) -> Instant {
        TokioTimer::new().now()
    }
}

struct HeadSleep {
    timer: HeadTimer,
    deadline: Instant,
}

impl Sleep for HeadSleep {}

impl Future for HeadSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let deadline = self.deadline.into();
        let mut kept = self.timer.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = kept.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        loop {
            // A timer that was set for an earlier request fires early, never late, and is then moved: each request has
            // the full time.
            ready!(kept.as_mut().poll(context));
            if kept.deadline() >= deadline {
                return Poll::Ready(());
            }
            kept.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_mins(1);

    #[tokio::test(start_paused = true)]
    async fn every_request_has_the_whole_time_and_no_more() {
        let timer = HeadTimer::default();
        let seconds = |start| timer.now().duration_since(start).as_secs();
        for pause in [0, 1, 30, 59, 61, 400] {
            // A head that came, and the pause until the next request.
            assert!(futures_util::poll!(timer.sleep(TIME)).is_pending());
            tokio::time::sleep(Duration::from_secs(pause)).await;
            let start = timer.now();
            timer.sleep(TIME).await;
            assert_eq!(seconds(start), 60, "{pause}");
        }
    }
}
