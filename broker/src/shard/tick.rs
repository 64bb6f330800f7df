//! Time on a core: ticks of the shards, and what is looked at now and then.
//!
//! Invariants:
//! - a shard's tick comes when it asked for it, and at least each second;
//! - flags that threads outside set are seen within [`LOOK`]; an idle core wakes no more often.

use super::core::Core;
use glommio::timer::Timer;
use ringmq_core::Input;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// How often flags from outside are looked at: ten wake-ups a second cost a quarter of a percent of a core.
const LOOK: Duration = Duration::from_millis(100);
const SECOND_US: u64 = 1_000_000;

/// When the core's clock rings next.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    at_us: Cell<u64>,
    waker: RefCell<Option<Waker>>,
}

impl Alarm {
    /// Rings at this time if it would ring later.
    pub(crate) fn sooner(&self, at_us: Option<u64>) {
        if let Some(at_us) = at_us
            && at_us < self.at_us.get()
        {
            self.at_us.set(at_us);
            self.ring();
        }
    }

    /// Lets the clock look again.
    pub(crate) fn ring(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Waits until the time has come.
    async fn wait(&self, core: &Core) {
        let mut timer = Timer::new(LOOK);
        let mut armed = u64::MAX;
        poll_fn(|cx| {
            let (now, at) = (core.state.now().mono_us, self.at_us.get());
            if at <= now || core.has_finished() {
                return Poll::Ready(());
            }
            if armed != at {
                armed = at;
                timer = Timer::new(Duration::from_micros(at - now));
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            match Pin::new(&mut timer).poll(cx) {
                Poll::Ready(_) => Poll::Ready(()),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
    }
}

/// Runs the core's clock until the core has finished.
pub(crate) async fn run(core: Rc<Core>) {
    let mut next_second = 0;
    let mut stop_seen = None;
    let mut had_room = true;
    while !core.has_finished() {
        let now = core.state.now();
        let is_second = now.mono_us >= next_second;
        for (at, slot) in core.slots.iter().enumerate() {
            let due = slot.shard.borrow().next_wake();
            if is_second || due.is_some_and(|due| due <= now.mono_us) {
                core.drive(at, now, Input::Tick);
            }
            for routes in core.state.control.take_routes(slot.number) {
                core.drive(at, now, Input::Routes(routes));
            }
        }
        let has_room = core.state.disk_has_room();
        if std::mem::replace(&mut had_room, has_room) != has_room {
            for at in 0..core.slots.len() {
                if !has_room {
                    core.drop_spares(at);
                }
                core.drive(at, now, Input::DiskHasRoom(has_room));
            }
        }
        for at in 0..core.slots.len() {
            core.report_overdue(at);
        }
        look(&core);
        if is_second {
            next_second = now.mono_us + SECOND_US;
            each_second(&core);
        }
        if core.state.is_stopping() {
            let since = *stop_seen.get_or_insert_with(|| {
                begin_stop(&core);
                now.mono_us
            });
            let limit = core.state.config.stop_timeout.as_micros() as u64;
            if core.state.all_stopped() || now.mono_us.saturating_sub(since) > limit {
                core.finished.set();
            }
        }
        core.turn.set();
        let wanted = core.slots.iter().filter_map(|slot| slot.shard.borrow().next_wake()).min();
        let look_at = now.mono_us + LOOK.as_micros() as u64;
        core.wake.at_us.set(wanted.map_or(look_at, |at| at.clamp(now.mono_us + 1, look_at)));
        core.wake.wait(&core).await;
    }
}

/// What changes seldom and must be noticed soon.
fn look(core: &Rc<Core>) {
    for slot in &core.slots {
        let shard = slot.shard.borrow();
        if !slot.was_ready.get() && shard.is_ready() {
            slot.was_ready.set(true);
            core.state.shard_is_ready();
        }
        if let Some(reason) = shard.failure()
            && core.state.control.fail(slot.number, reason.to_owned())
        {
            tracing::error!(
                shard = slot.number,
                reason,
                "the shard stopped writing: what is durable is served, new messages are refused; restart \
                 the broker when the disk is well"
            );
        }
    }
}

fn each_second(core: &Rc<Core>) {
    for slot in &core.slots {
        let shard = slot.shard.borrow();
        core.state.control.publish(slot.number, shard.figures(), &slot.latency.borrow());
        core.state.control.publish_lags(slot.number, shard.lags());
    }
    core.connections.sweep(core);
}

fn begin_stop(core: &Rc<Core>) {
    crate::net::listen::stop(core);
    let now = core.state.now();
    for at in 0..core.slots.len() {
        core.drive(at, now, Input::Stop);
    }
}
