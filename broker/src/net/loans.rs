//! What a core has lent to the transfer threads.
//!
//! Invariants:
//! - a segment is held as long as a loan of it is out, whatever becomes of the connection;
//! - bytes lent by a core are bounded; connections beyond wait in order, and none waits for itself.

use super::connection::Connection;
use super::transfer::{LOAN_BYTES_MAX, Loan, Returned};
use crate::disk::segment::InUse;
use crate::shard::core::Core;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::atomic::Ordering;

/// A shorter loan counts as so many bytes: each holds a descriptor of its socket, and these are bounded too.
const LOAN_COUNTS_MIN: usize = 64 << 10;

/// Most loans of a core that may be out.
pub(crate) fn loans_max(transfer_bytes: usize) -> usize {
    transfer_bytes / LOAN_COUNTS_MIN + 1
}

#[derive(Debug)]
struct Out {
    /// Held, not used.
    _segment: Rc<InUse>,
    bytes: usize,
    /// In the core's slots: whose disk it is.
    slot: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Loans {
    next: Cell<u64>,
    bytes: Cell<usize>,
    out: RefCell<HashMap<u64, Out>>,
    waiting: RefCell<VecDeque<Rc<Connection>>>,
}

/// Lends the range at the front of the connection's output, now or when there is room.
pub(crate) fn lend(core: &Rc<Core>, connection: Rc<Connection>) {
    let loans = &core.loans;
    let most = core.state.config.transfer_bytes.as_usize();
    if loans.bytes.get() > 0 && loans.bytes.get() + LOAN_BYTES_MAX > most {
        return loans.waiting.borrow_mut().push_back(connection);
    }
    let Some(front) = connection.front_file(LOAN_BYTES_MAX) else { return };
    let socket = match connection.lent_socket() {
        Ok(socket) => socket,
        Err(error) => {
            tracing::warn!(connection = connection.id, "closed, it cannot be lent: {error}");
            return connection.kill();
        }
    };
    let number = loans.next.get();
    loans.next.set(number + 1);
    let bytes = front.bytes.max(LOAN_COUNTS_MIN);
    loans.bytes.set(loans.bytes.get() + bytes);
    let out = Out { _segment: Rc::clone(&front.segment), bytes, slot: front.slot };
    loans.out.borrow_mut().insert(number, out);
    core.state.threads.transfers.lend(Loan {
        core: core.id,
        connection: connection.id,
        number,
        socket,
        file: front.segment.buffered(),
        at: front.position - front.segment.base,
        bytes: front.bytes,
    });
}

/// A loan came back: its connection goes on, and those that wait have room.
pub(crate) fn returned(core: &Rc<Core>, back: Returned) {
    let loans = &core.loans;
    let Some(out) = loans.out.borrow_mut().remove(&back.number) else { return };
    loans.bytes.set(loans.bytes.get() - out.bytes);
    core.state.control.transferred.fetch_add(back.sent as u64, Ordering::Relaxed);
    let slot = out.slot;
    drop(out);
    if let Some(connection) = core.connections.find(back.connection) {
        if let Err(error) = &back.result {
            tracing::info!(connection = connection.id, "closed, a transfer failed: {error}");
        }
        connection.came_back(core, back.sent, back.result.is_ok());
    }
    let waiting = loans.waiting.borrow().len();
    for _ in 0..waiting {
        let next = loans.waiting.borrow_mut().pop_front();
        match next {
            Some(connection) if !connection.is_dead() => lend(core, connection),
            _ => {}
        }
    }
    let closing = Rc::clone(core);
    core.tasks.spawn(async move { closing.slots[slot].disk.close_surplus().await });
}
