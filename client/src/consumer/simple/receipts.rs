//! Acknowledgements on their way: those of one shard that come while another request is under way go together.

use super::places::Place;
use super::received::{Received, bad_receipt};
use crate::connection::{Answer, Request};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::{Key, Pool, Purpose};
use ringmq_schema::error::Status;
use ringmq_schema::limits::RECEIPTS_MAX;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::pop::{
    Ack, AckAnswer, AckArgs, ChangeInvisible, ChangeInvisibleAnswer, ChangeInvisibleArgs, Changed,
    Receipt,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Pause before an acknowledgement is tried again.
const PAUSE: Duration = Duration::from_millis(50);
/// How long it is tried.
const LIMIT: Duration = Duration::from_secs(10);

/// Address, shard and group id.
type Line = (Arc<str>, u16, u32);
/// Statuses in the order of the receipts, and whether no request before may have had its effect.
type Answered = Result<(Vec<u16>, bool)>;

/// Receipts that go together, and who waits for them.
struct Batch {
    receipts: Vec<Receipt>,
    answer: oneshot::Sender<Answered>,
}

type Waiting = Vec<Batch>;

/// See the module.
pub(super) struct Receipts {
    pool: Arc<Pool>,
    limit: Duration,
    /// A line is there while its acknowledgements are being sent.
    lines: Arc<Mutex<HashMap<Line, Waiting>>>,
}

impl Receipts {
    pub(super) fn new(pool: Arc<Pool>, limit: Duration) -> Receipts {
        Receipts { pool, limit, lines: Arc::default() }
    }

    /// Acknowledges messages of one place and group; returns how that went, in their order.
    pub(super) async fn ack(
        &self,
        place: &Place,
        group_id: u32,
        receipts: Vec<Receipt>,
    ) -> Vec<Result<()>> {
        let count = receipts.len();
        let answered = self.enqueue(place, group_id, receipts).await;
        match answered.unwrap_or_else(|_| Err(Error::closed(ACKNOWLEDGE))) {
            Ok((statuses, is_certain)) => {
                let missing = Status::Internal.code();
                let status = |at: usize| statuses.get(at).copied().unwrap_or(missing);
                (0..count).map(|at| outcome(ACKNOWLEDGE, status(at), is_certain)).collect()
            }
            Err(error) => (0..count).map(|_| Err(error.clone())).collect(),
        }
    }

    /// Acknowledges a message of which nobody wants to know any more.
    pub(super) fn ack_unseen(&self, place: &Place, group_id: u32, receipt: Receipt) {
        drop(self.enqueue(place, group_id, vec![receipt]));
    }

    fn enqueue(
        &self,
        place: &Place,
        group_id: u32,
        receipts: Vec<Receipt>,
    ) -> oneshot::Receiver<Answered> {
        let line: Line = (Arc::clone(&place.address), place.shard, group_id);
        let (answer, answered) = oneshot::channel();
        let batch = Batch { receipts, answer };
        let mut lines = self.lines.lock().expect("nothing panics with it locked");
        if let Some(waiting) = lines.get_mut(&line) {
            waiting.push(batch);
            return answered;
        }
        lines.insert(line.clone(), vec![batch]);
        let (pool, limit, lines) = (Arc::clone(&self.pool), self.limit, Arc::clone(&self.lines));
        tokio::spawn(async move {
            // What is acknowledged in the same turn goes together.
            tokio::task::yield_now().await;
            while let Some(waiting) = take(&lines, &line) {
                send(&pool, limit, &line, waiting).await;
            }
        });
        answered
    }

    /// Sets a message's invisible time; returns its new nonce.
    pub(super) async fn change(
        &self,
        operation: &'static str,
        message: &Received,
        invisible_ms: u32,
    ) -> Result<u64> {
        let mut tries = Tries::new(operation);
        let answer = loop {
            match self.ask_change(operation, message, invisible_ms).await {
                Ok(answer) => break answer,
                Err(error) => tries.after(error).await?,
            }
        };
        let table = answer.read::<ChangeInvisibleAnswer<'_>>(operation)?;
        let changed: Vec<Changed> = table.receipts().into_iter().flatten().copied().collect();
        let Some(changed) = changed.first() else {
            return Err(Error::protocol(operation, "the answer names no receipt"));
        };
        outcome(operation, changed.status(), tries.is_certain).map(|()| changed.nonce())
    }

    async fn ask_change(
        &self,
        operation: &'static str,
        message: &Received,
        invisible_ms: u32,
    ) -> Result<Answer> {
        let Place { address, shard, .. } = &*message.place;
        let request = Request::new(Opcode::ChangeInvisible, operation).shard(*shard);
        let (group, receipts) = (message.group_id, [message.receipt]);
        let connection = self.pool.get(&key(address, *shard)).await?;
        connection
            .call(request, self.limit, |fbb| {
                let receipts = Some(fbb.create_vector(&receipts));
                ChangeInvisible::create(fbb, &ChangeInvisibleArgs { group, receipts, invisible_ms })
            })
            .await
    }

    /// Gives messages back at once; what fails comes back when its time is over.
    pub(super) async fn give_back(&self, messages: Vec<Received>) {
        let giving = messages.iter().map(|message| self.change("give back", message, 0));
        futures_util::future::join_all(giving).await;
    }
}

fn key(address: &Arc<str>, shard: u16) -> Key {
    Key { address: Arc::clone(address), shard, purpose: Purpose::Control }
}

/// What waits in a line; when nothing does, the line ends.
fn take(lines: &Mutex<HashMap<Line, Waiting>>, line: &Line) -> Option<Waiting> {
    let mut lines = lines.lock().expect("nothing panics with it locked");
    let waiting = lines.get_mut(line)?;
    let mut count = 0;
    let mut fits = |batch: &&Batch| {
        count += batch.receipts.len();
        count <= RECEIPTS_MAX
    };
    // One that is too long by itself is refused by the broker, and says so.
    let together = waiting.iter().take_while(|batch| fits(batch)).count().max(1).min(waiting.len());
    let rest = waiting.split_off(together);
    let first = std::mem::replace(waiting, rest);
    if first.is_empty() {
        lines.remove(line);
        return None;
    }
    Some(first)
}

/// For errors of acknowledgements.
const ACKNOWLEDGE: &str = "acknowledge";

async fn send(pool: &Pool, limit: Duration, line: &Line, waiting: Waiting) {
    let all = waiting.iter().flat_map(|batch| &batch.receipts);
    let receipts: Vec<Receipt> = all.copied().collect();
    let answered = ask_ack(pool, limit, line, &receipts).await;
    let mut at = 0;
    for Batch { receipts, answer } in waiting {
        let of = at..at + receipts.len();
        at = of.end;
        let part = answered.as_ref().map(|(statuses, is_certain)| {
            (statuses.get(of).unwrap_or_default().to_vec(), *is_certain)
        });
        // Whoever asked may have gone.
        let _ = answer.send(part.map_err(Error::clone));
    }
}

/// Returns the statuses, and whether no request before may have had its effect.
async fn ask_ack(pool: &Pool, limit: Duration, line: &Line, receipts: &[Receipt]) -> Answered {
    let mut tries = Tries::new(ACKNOWLEDGE);
    loop {
        match ask_ack_once(pool, limit, line, receipts).await {
            Ok(answer) => {
                let table = answer.read::<AckAnswer<'_>>(ACKNOWLEDGE)?;
                return Ok((table.statuses().into_iter().flatten().collect(), tries.is_certain));
            }
            Err(error) => tries.after(error).await?,
        }
    }
}

async fn ask_ack_once(
    pool: &Pool,
    limit: Duration,
    (address, shard, group): &Line,
    receipts: &[Receipt],
) -> Result<Answer> {
    let request = Request::new(Opcode::Ack, ACKNOWLEDGE).shard(*shard);
    let connection = pool.get(&key(address, *shard)).await?;
    connection
        .call(request, limit, |fbb| {
            let receipts = Some(fbb.create_vector(receipts));
            Ack::create(fbb, &AckArgs { group: *group, receipts })
        })
        .await
}

/// Asking again, as long as that can help.
struct Tries {
    operation: &'static str,
    deadline: Instant,
    /// No request that failed may have had its effect.
    is_certain: bool,
}

impl Tries {
    fn new(operation: &'static str) -> Tries {
        Tries { operation, deadline: Instant::now() + LIMIT, is_certain: true }
    }

    /// Waits before the next try, or says that there is none.
    async fn after(&mut self, error: Error) -> Result<()> {
        let again = matches!(
            error.kind(),
            ErrorKind::Unknown | ErrorKind::Unreachable | ErrorKind::Busy | ErrorKind::Timeout
        );
        if !again || Instant::now() >= self.deadline {
            return Err(error.during(self.operation));
        }
        self.is_certain &= error.kind() != ErrorKind::Unknown;
        tokio::time::sleep(error.retry_after().unwrap_or(PAUSE)).await;
        Ok(())
    }
}

fn outcome(operation: &'static str, status: u16, is_certain: bool) -> Result<()> {
    match Status::from_code(status) {
        Status::Ok => Ok(()),
        Status::BadReceipt if is_certain => Err(bad_receipt(operation)),
        Status::BadReceipt => {
            let text = "the connection broke after it was asked for the first time, and now its receipt counts no \
                        more: either it was done then, or somebody else has the message";
            Err(Error::new(ErrorKind::Unknown, operation, text))
        }
        status => Err(Error::of_status(operation, status)),
    }
}
