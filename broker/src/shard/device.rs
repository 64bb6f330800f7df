//! What a shard asks of its device, carried out: by the ring of this core, or by a thread beside it.
//!
//! Invariant: each operation is answered by exactly one input, by its deadline at the latest.

use super::core::{CORE_SHIFT, Core};
use super::deadline::Operation;
use super::mesh::Parcel;
use crate::disk::beside::{Done, Job};
use crate::disk::memory::LogBlock;
use crate::disk::segment::failed;
use ringmq_core::index::SegmentRows;
use ringmq_core::{BLOCK_BYTES, Block, ConnectionId, DiskError, Input};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

impl Core {
    pub(super) fn write(
        self: &Rc<Self>,
        at: usize,
        write: u64,
        position: u64,
        block: Rc<LogBlock>,
        durable: bool,
    ) {
        self.slots[at].disk.announce(position, block.bytes().len());
        let core = Rc::clone(self);
        let begun = Instant::now();
        let ticket = self.slots[at].deadlines.begin(begun, Operation::Write(write));
        self.tasks.spawn(async move {
            let result = core.slots[at].disk.write(position, &block, durable).await;
            if durable {
                core.flush_took(at, begun);
            }
            core.ended(at, ticket, Input::Written { write, result });
        });
    }

    pub(super) fn sync(self: &Rc<Self>, at: usize, sync: u64, from: u64, to: u64) {
        let core = Rc::clone(self);
        let begun = Instant::now();
        let ticket = self.slots[at].deadlines.begin(begun, Operation::Sync(sync));
        self.tasks.spawn(async move {
            let result = core.slots[at].disk.sync(from, to).await;
            core.flush_took(at, begun);
            core.ended(at, ticket, Input::Synced { sync, result });
        });
    }

    fn flush_took(&self, at: usize, begun: Instant) {
        self.slots[at].latency.borrow_mut().flush.saturating_record(nanos(begun.elapsed()));
    }

    pub(super) fn make_segment(self: &Rc<Self>, at: usize, base: u64, bytes: u64) {
        let core = Rc::clone(self);
        let ticket = self.slots[at].deadlines.begin(Instant::now(), Operation::Segment(base));
        self.tasks.spawn(async move {
            let made = core.slots[at].disk.make_segment(base, bytes).await;
            match &made {
                Ok(true) => {
                    core.state.control.recycled.fetch_add(1, Ordering::Relaxed);
                }
                Ok(false) => {}
                Err(error) => {
                    let shard = core.slots[at].number;
                    tracing::error!(
                        shard,
                        "{error}; it is tried again, and messages refused meanwhile"
                    );
                }
            }
            core.ended(at, ticket, Input::SegmentReady { base, result: made.map(drop) });
        });
    }

    pub(super) fn read(self: &Rc<Self>, at: usize, read: u64, position: u64, bytes: u32) {
        let core = Rc::clone(self);
        let ticket = self.slots[at].deadlines.begin(Instant::now(), Operation::Read(read));
        self.tasks.spawn(async move {
            let result = core.slots[at].disk.read(position, bytes as usize).await;
            core.ended(at, ticket, Input::Read { read, result: result.map(Rc::new) });
        });
    }

    pub(super) fn read_index(
        self: &Rc<Self>,
        at: usize,
        read: u64,
        base: u64,
        from: u64,
        bytes: u32,
    ) {
        let core = Rc::clone(self);
        let ticket = self.slots[at].deadlines.begin(Instant::now(), Operation::IndexRead(read));
        self.tasks.spawn(async move {
            let result = core.slots[at].disk.read_index(base, from, bytes as usize).await;
            core.ended(at, ticket, Input::IndexRead { read, result: result.map(Rc::new) });
        });
    }

    pub(super) fn write_index(&self, at: usize, rows: Arc<SegmentRows>) {
        let slot = &self.slots[at];
        let (shard, folder) = (slot.number, slot.disk.folder());
        self.beside(Job::Index { shard, folder, rows });
    }

    pub(super) fn retire(self: &Rc<Self>, at: usize, base: u64) {
        let core = Rc::clone(self);
        self.tasks.spawn(async move {
            let slot = &core.slots[at];
            let has_room = || core.state.disk_has_room();
            slot.disk.retire(slot.number, base, has_room, |job| core.beside(job)).await;
        });
    }

    pub(super) fn punch(self: &Rc<Self>, at: usize, position: u64, bytes: u64) {
        let core = Rc::clone(self);
        self.tasks.spawn(async move {
            let slot = &core.slots[at];
            match slot.disk.punch(slot.number, position, bytes).await {
                Ok(job) => core.beside(job),
                Err(error) => {
                    core.complete(at, Input::Punched { position, result: Err(error) });
                }
            }
        });
    }

    /// Hands a job to the thread beside the cores, which answers by parcel.
    fn beside(&self, job: Job) {
        // It ends after the cores: nobody waits for what it does not do any more.
        let _ = self.state.threads.beside.send(job);
    }

    /// The disk is below its watermark: what is kept for later goes.
    pub(super) fn drop_spares(&self, at: usize) {
        for job in self.slots[at].disk.drop_spares() {
            self.beside(job);
        }
    }

    /// A job of the thread beside the cores ended.
    pub(super) fn beside_done(self: &Rc<Self>, shard: u16, done: Done) {
        let Some(at) = self.slot_of(shard) else { return };
        let slot = &self.slots[at];
        match done {
            Done::Index { base, result, took } => {
                slot.latency.borrow_mut().index.saturating_record(nanos(took));
                let core = Rc::clone(self);
                self.tasks.spawn(async move {
                    core.slots[at].disk.index_was_written(base).await;
                    core.complete(at, Input::IndexWritten { base, result });
                });
            }
            Done::Punched { position, result } => {
                self.complete(at, Input::Punched { position, result });
            }
            Done::Retired { segment, is_spare, was_to_keep } => {
                slot.disk.retired(segment, is_spare, was_to_keep);
                if !self.state.disk_has_room() {
                    self.drop_spares(at);
                }
            }
        }
    }

    /// Answers with a range of the log: from file to socket when the connection is here.
    pub(super) fn transfer(
        self: &Rc<Self>,
        at: usize,
        connection: ConnectionId,
        head: &[u8],
        position: u64,
        bytes: u32,
    ) {
        let slot = &self.slots[at];
        if (connection >> CORE_SHIFT) as usize != self.id || self.state.threads.transfers.is_empty()
        {
            return self.answer_from_memory(at, connection, head.to_vec(), position, bytes);
        }
        let Some(connection) = self.connections.find(connection) else { return };
        if let Some(took) = connection.answered(head) {
            slot.latency.borrow_mut().append.saturating_record(took);
        }
        let Some(segment) = slot.disk.hold(position, u64::from(bytes)) else {
            tracing::error!(shard = slot.number, position, bytes, "no segment has the transfer");
            return connection.kill();
        };
        connection.push_file(head, segment, position, bytes as usize, at);
        self.to_flush(connection);
    }

    /// Answers with a range of the log that cannot go from file to socket.
    fn answer_from_memory(
        self: &Rc<Self>,
        at: usize,
        connection: ConnectionId,
        mut frame: Vec<u8>,
        position: u64,
        bytes: u32,
    ) {
        let core = Rc::clone(self);
        self.tasks.spawn(async move {
            let (from, length, range) = blocks_of(position, bytes);
            let there = (connection >> CORE_SHIFT) as usize;
            let parcel = match core.slots[at].disk.read(from, length).await {
                Ok(block) => {
                    frame.extend_from_slice(&block.bytes()[range]);
                    Parcel::Answer { connection, frame }
                }
                Err(error) => {
                    tracing::warn!(connection, "closed, its answer cannot be read: {error}");
                    Parcel::Cut { connection }
                }
            };
            match there == core.id {
                true => core.take_parcel(parcel),
                false => core.state.mesh.send(there, parcel),
            }
        });
    }

    /// Reports operations that did not end in time.
    pub(super) fn report_overdue(self: &Rc<Self>, at: usize) {
        let limit = self.state.config.disk_timeout;
        while let Some(operation) = self.slots[at].deadlines.overdue(Instant::now(), limit) {
            tracing::error!(shard = self.slots[at].number, ?operation, "the disk does not answer");
            self.complete(at, late(operation, limit));
        }
    }

    /// A device operation ended; when that was reported before, as too late, it is ignored.
    fn ended(self: &Rc<Self>, at: usize, ticket: u64, input: Input<'_, LogBlock>) {
        if self.slots[at].deadlines.end(ticket) {
            self.complete(at, input);
        }
    }

    fn complete(self: &Rc<Self>, at: usize, input: Input<'_, LogBlock>) {
        self.drive(at, self.state.now(), input);
        self.turn.set();
    }
}

/// What an operation that took too long is answered with.
fn late(operation: Operation, limit: Duration) -> Input<'static, LogBlock> {
    let error = |name: &str| -> DiskError {
        failed(name.to_owned(), format!("the disk did not answer within {} ms", limit.as_millis()))
    };
    match operation {
        Operation::Write(write) => Input::Written { write, result: Err(error("a write")) },
        Operation::Sync(sync) => Input::Synced { sync, result: Err(error("a sync")) },
        Operation::Segment(_) => Input::DiskFailed { error: error("making a segment") },
        Operation::Read(read) => Input::Read { read, result: Err(error("a read")) },
        Operation::IndexRead(read) => {
            Input::IndexRead { read, result: Err(error("a read of an index")) }
        }
    }
}

/// The whole blocks around a range of the log, and where in them it is.
fn blocks_of(position: u64, bytes: u32) -> (u64, usize, Range<usize>) {
    let from = position - position % BLOCK_BYTES as u64;
    let start = (position - from) as usize;
    let end = start + bytes as usize;
    (from, end.next_multiple_of(BLOCK_BYTES), start..end)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{BrokerConfig, Bytes};
    use crate::control::Shared;
    use crate::data_dir::{DataDir, Owner};
    use crate::disk::beside;
    use crate::disk::segment::{file_name, index_name};
    use crate::net::connection::Connection;
    use crate::net::transfer::Transfers;
    use crate::shard::mesh::{self, Mesh};
    use crate::shard::state::{BrokerState, Threads};
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, channel};

    const SEGMENT: u64 = 4 << 20;
    const CONTENT_FROM: u64 = 1 << 20;

    fn content(position: u64, bytes: usize) -> Vec<u8> {
        (position..).take(bytes).map(|at| (at / 11) as u8).collect()
    }

    /// The first of two cores of a broker, with a transfer thread and nothing that serves.
    async fn core(path: &Path) -> (Rc<Core>, Receiver<Job>) {
        let config = BrokerConfig {
            segment_bytes: Bytes(SEGMENT),
            zero_ahead_bytes: Bytes(0),
            transfer_bytes: Bytes::mib(1),
            ..BrokerConfig::default()
        };
        let owner = Owner { cluster: "c", broker: "b", broker_id: 0 };
        let data = DataDir::open(path, owner, 2, None).unwrap();
        let (mesh, mut ears) = Mesh::new(2).unwrap();
        let (transfers, mut desks) = Transfers::new(1).unwrap();
        let (beside, jobs) = channel();
        let (shared, threads) = (Arc::new(Shared::new(2)), Threads { beside, transfers });
        let state = Arc::new(BrokerState::new(config, data, 2, 1, shared, mesh, threads));
        let (desk, lender) = (desks.remove(0), Arc::clone(&state));
        std::thread::spawn(move || {
            desk.run(Duration::from_secs(60), |back| {
                lender.mesh.send(back.core, Parcel::Returned(back));
            });
        });
        let slots = super::super::open_shards(0, &state).await.unwrap();
        let core = Core::new(0, state, slots, super::super::busy::BusyPoll::new(0));
        core.loops.spawn(mesh::receive(Rc::clone(&core), ears.remove(0)));
        core.loops.spawn(Rc::clone(&core).turns());
        core.loops.spawn(Rc::clone(&core).relieve());
        core.begin(0);
        until(|| core.slots[0].disk.hold(0, SEGMENT).is_some()).await;
        let log = path.join("shard-0000").join(file_name(0));
        let file = std::fs::File::options().write(true).open(log).unwrap();
        let bytes = content(CONTENT_FROM, (SEGMENT - CONTENT_FROM) as usize);
        file.write_all_at(&bytes, CONTENT_FROM).unwrap();
        file.sync_all().unwrap();
        (core, jobs)
    }

    async fn until(is_so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !is_so() {
            assert!(begun.elapsed() < Duration::from_secs(20), "it never came");
            glommio::timer::sleep(Duration::from_micros(200)).await;
        }
    }

    async fn end(core: Rc<Core>) {
        core.connections.close_all(&core);
        core.state.threads.transfers.end();
        until(|| core.tasks.running() == 0).await;
        core.finish();
        core.loops.ended().await;
        core.slots[0].disk.close().await;
    }

    fn on_core(test: impl AsyncFnOnce(Rc<Core>, Receiver<Job>) + 'static) {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().to_owned();
        glommio::LocalExecutorBuilder::default().make().unwrap().run(async move {
            let (core, jobs) = core(&path).await;
            test(Rc::clone(&core), jobs).await;
            end(core).await;
        });
    }

    fn connected(core: &Rc<Core>) -> (Rc<Connection>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        (core.connections.add(crate::sys::adopt_stream(server.into()), false), client)
    }

    #[test]
    fn answers_from_files_keep_their_place_on_the_stream() {
        on_core(async |core, _jobs| {
            let mut readers = Vec::new();
            // Three, of which the bound lets one have its loan at a time.
            for number in 0..3u64 {
                let (connection, mut client) = connected(&core);
                let mut expected = Vec::new();
                for round in 0..3u64 {
                    let position = CONTENT_FROM + 8 * (number + round);
                    let bytes = (2 << 20) + 8 * round as usize;
                    let head = format!("head {number} {round}");
                    core.transfer(0, connection.id, head.as_bytes(), position, bytes as u32);
                    expected.extend_from_slice(head.as_bytes());
                    expected.extend(content(position, bytes));
                    connection.push(b"later", &[]);
                    core.to_flush(Rc::clone(&connection));
                    expected.extend_from_slice(b"later");
                }
                readers.push((
                    connection,
                    std::thread::spawn(move || {
                        let mut got = vec![0; expected.len()];
                        client.read_exact(&mut got).unwrap();
                        client.write_all(b"request").unwrap();
                        (got == expected, client)
                    }),
                ));
            }
            for (connection, reader) in readers {
                until(|| reader.is_finished()).await;
                let (is_equal, client) = reader.join().unwrap();
                assert!(is_equal, "connection {}", connection.id);
                // The core still hears the client.
                let mut request = [0; 16];
                let read = std::future::poll_fn(|cx| connection.poll_read(cx, &mut request));
                assert!(read.await.unwrap() == 7 && &request[..7] == b"request");
                drop(client);
            }
            let sent = core.state.control.transferred.load(Ordering::Relaxed);
            assert_eq!(sent, 3 * (3 * (2 << 20) + 24));
        });
    }

    #[test]
    fn a_segment_is_retired_when_its_transfers_have_ended_however() {
        on_core(async |core, jobs| {
            let (connection, client) = connected(&core);
            for _ in 0..8 {
                core.transfer(0, connection.id, b"head", CONTENT_FROM, 3 << 20);
            }
            core.retire(0, 0);
            core.flush();
            for _ in 0..20 {
                glommio::timer::sleep(Duration::from_micros(200)).await;
                assert!(jobs.try_recv().is_err(), "transfers wait for a client that reads nothing");
            }
            drop(client);
            until(|| connection.is_dead()).await;
            core.connections.remove(connection.id);
            drop(connection);
            let retired = std::cell::RefCell::new(None);
            until(|| {
                let job = jobs.try_recv().ok();
                retired.replace(job);
                retired.borrow().is_some()
            })
            .await;
            let job = retired.take().unwrap();
            assert!(matches!(job, Job::Retire { shard: 0, keep: true, .. }), "{job:?}");
        });
    }

    #[test]
    fn a_connection_of_another_core_gets_the_range_by_parcel() {
        on_core(async |core, _jobs| {
            let connection = (1 << CORE_SHIFT) + 5;
            core.transfer(0, connection, b"head", CONTENT_FROM + 8, 5000);
            core.transfer(0, connection, b"head", 9 * SEGMENT, 5000);
            until(|| core.tasks.running() == 0).await;
            let parcels = core.state.mesh.take(1);
            let mut answers = 0;
            for parcel in parcels {
                match parcel {
                    Parcel::Answer { connection: to, frame } if to == connection => {
                        assert_eq!(frame[..4], *b"head");
                        assert!(frame[4..] == content(CONTENT_FROM + 8, 5000));
                        answers += 1;
                    }
                    Parcel::Cut { connection: cut } => assert_eq!(cut, connection),
                    _ => {}
                }
            }
            assert_eq!(answers, 1);
        });
    }

    #[test]
    fn an_index_is_written_beside_the_core_and_the_core_hears_of_it() {
        on_core(async |core, jobs| {
            let rows = SegmentRows { base: 0, bytes: SEGMENT, ..SegmentRows::default() };
            core.write_index(0, Arc::new(rows));
            core.beside(Job::End);
            let state = Arc::clone(&core.state);
            let thread = std::thread::spawn(move || {
                beside::run(&jobs, |shard, done| {
                    state.mesh.send(0, Parcel::Beside { shard, done });
                });
            });
            until(|| core.slots[0].latency.borrow().index.len() == 1).await;
            thread.join().unwrap();
            assert!(core.slots[0].disk.folder().join(index_name(0)).exists());
        });
    }

    #[test]
    fn a_range_is_found_in_its_blocks() {
        assert_eq!(blocks_of(8192, 4096), (8192, 4096, 0..4096));
        assert_eq!(blocks_of(8200, 4096), (8192, 8192, 8..4104));
        assert_eq!(blocks_of(4088, 8), (0, 4096, 4088..4096));
    }

    #[test]
    fn what_is_late_is_answered_with_an_error_that_says_so() {
        let limit = Duration::from_secs(30);
        let Input::Written { write: 9, result: Err(error) } = late(Operation::Write(9), limit)
        else {
            panic!("the write is not answered")
        };
        assert_eq!(error.to_string(), "a write failed: the disk did not answer within 30000 ms");
        let Input::DiskFailed { error } = late(Operation::Segment(0), limit) else {
            panic!("a segment that is never made stops nobody")
        };
        assert!(error.to_string().starts_with("making a segment failed"), "{error}");
        assert!(matches!(
            late(Operation::IndexRead(3), limit),
            Input::IndexRead { read: 3, result: Err(_) }
        ));
    }
}
