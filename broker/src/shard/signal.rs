//! Waking one task of the same core.
//!
//! Invariant: at most one task waits for a signal. glommio counts a task's wakers in 16 bits, so
//! nothing waits per message: one signal a core, file or connection.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Set by whoever has work, awaited by the one task that does it.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    set: Cell<bool>,
    waiter: RefCell<Option<Waker>>,
}

impl Signal {
    /// Wakes the task, now or when it waits next.
    pub(crate) fn set(&self) {
        if !self.set.replace(true)
            && let Some(waker) = self.waiter.borrow_mut().take()
        {
            waker.wake();
        }
    }

    /// Waits until it is set, and clears it.
    pub(crate) async fn wait(&self) {
        poll_fn(|cx| {
            if self.set.take() {
                return Poll::Ready(());
            }
            *self.waiter.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Tasks that wait for the same thing, woken together.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    wakers: RefCell<Vec<Waker>>,
}

impl Waiters {
    /// Waits while `is_blocked` says so; it is asked again whenever [`Waiters::wake`] is called.
    pub(crate) async fn wait_while(&self, is_blocked: impl Fn() -> bool) {
        poll_fn(|cx| {
            if !is_blocked() {
                return Poll::Ready(());
            }
            self.wakers.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Whether anybody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.wakers.borrow().is_empty()
    }

    /// Lets all look again.
    pub(crate) fn wake(&self) {
        for waker in self.wakers.take() {
            waker.wake();
        }
    }
}

/// Tasks that run on behalf of a core: who starts them waits for them at the end.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    running: Cell<usize>,
    ended: Waiters,
}

/// Counts a task while it lives.
struct Running(std::rc::Rc<Tasks>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
        self.0.ended.wake();
    }
}

impl Tasks {
    /// Runs a task of this core.
    pub(crate) fn spawn(self: &std::rc::Rc<Self>, task: impl Future<Output = ()> + 'static) {
        self.running.set(self.running.get() + 1);
        let running = Running(std::rc::Rc::clone(self));
        glommio::spawn_local(async move {
            let _running = running;
            task.await;
        })
        .detach();
    }

    /// Waits until none is left.
    pub(crate) async fn ended(&self) {
        self.ended.wait_while(|| self.running.get() > 0).await;
    }

    /// How many run.
    pub(crate) fn running(&self) -> usize {
        self.running.get()
    }
}
