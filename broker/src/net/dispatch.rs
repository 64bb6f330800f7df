//! What becomes of a frame: answered here, given to a shard, or refused.
//!
//! Invariants:
//! - nothing but `Hello` is served before `Hello`;
//! - every request that wants an answer gets one, here or from a shard.

use super::connection::Connection;
use crate::shard::core::Core;
use crate::shard::state::wall_ms;
use ringmq_core::Now;
use ringmq_schema::connection::{
    Hello, HelloAnswer, HelloAnswerArgs, Ping, PingAnswer, PingAnswerArgs, RefusalArgs,
};
use ringmq_schema::error::Status;
use ringmq_schema::frame::{self, ANY_SHARD, Frame, FrameError, FrameHeader};
use ringmq_schema::limits;
use ringmq_schema::opcode::{Opcode, Place};
use ringmq_schema::placement::HOME_SHARD;
use std::rc::Rc;

/// Features that this broker speaks: none beyond the protocol's first version.
const FEATURES: u64 = 0;
/// Hint for a client that has too much in flight.
const RETRY_AFTER_MS: u32 = 10;

/// What became of the bytes that were looked at.
pub(crate) enum Step {
    /// So many were whole frames.
    Took(usize),
    /// The connection belongs to another core; the frame at this place is its `Hello`.
    HandOver { core: usize, at: usize },
    /// The protocol was broken: the connection ends once it was told.
    Refused,
}

/// Hands over every whole frame.
pub(crate) fn frames(core: &Rc<Core>, connection: &Rc<Connection>, bytes: &[u8]) -> Step {
    let limit = u32::try_from(core.state.config.max_frame_bytes.0).unwrap_or(u32::MAX);
    let now = core.state.now();
    let mut at = 0;
    while at < bytes.len() {
        match frame::parse(&bytes[at..], limit) {
            Ok(None) => break,
            Ok(Some(frame)) => {
                let length = frame.header.length.get() as usize;
                let whole = &bytes[at..at + length];
                match one(core, connection, now, frame, whole) {
                    Done::GoOn => at += length,
                    Done::HandOver(core) => return Step::HandOver { core, at },
                    Done::Refused => return Step::Refused,
                }
            }
            Err(error) => {
                refuse_bytes(core, connection, &bytes[at..], &error);
                return Step::Refused;
            }
        }
    }
    Step::Took(at)
}

enum Done {
    GoOn,
    HandOver(usize),
    Refused,
}

fn one(
    core: &Rc<Core>,
    connection: &Rc<Connection>,
    now: Now,
    frame: Frame<'_>,
    bytes: &[u8],
) -> Done {
    let header = frame.header;
    let refuse = |status: Status, message: &str| {
        refuse(core, connection, header, status, message, &RefusalArgs::default());
        Done::GoOn
    };
    if header.is_answer() {
        refuse(Status::BadRequest, "an answer came where only requests are taken");
        return Done::Refused;
    }
    let Some(opcode) = header.opcode() else {
        let message = format!("there is no opcode {}", header.opcode.get());
        return refuse(Status::UnknownOpcode, &message);
    };
    if opcode == Opcode::Hello {
        return hello(core, connection, frame);
    }
    let Some(own) = connection.shard.get() else {
        refuse(Status::HelloRequired, "the first request of a connection must be Hello");
        return Done::Refused;
    };
    if !opcode.is_served() {
        let message = format!("{} is not served by this version", opcode.name());
        return refuse(Status::Unsupported, &message);
    }
    let shard = match opcode.place() {
        Place::Connection => {
            ping(core, connection, frame);
            return Done::GoOn;
        }
        Place::NameServer => {
            let message = format!("{} is served by name servers, this is a broker", opcode.name());
            return refuse(Status::Unsupported, &message);
        }
        Place::Home => HOME_SHARD,
        Place::Shard if header.shard.get() == ANY_SHARD => own,
        Place::Shard => header.shard.get(),
    };
    if shard >= core.state.shards() {
        let message = format!("there is no shard {shard}, this broker has {}", core.state.shards());
        return refuse(Status::BadRequest, &message);
    }
    if core.state.is_stopping() {
        return refuse(Status::NotReady, "the broker is stopping");
    }
    if connection.output_is_full(core) && !header.is_one_way() {
        // Read before the last answers were made: one `recv` may bring thousands of requests.
        let message = "as many bytes wait to be sent on this connection as are allowed";
        let more = RefusalArgs { retry_after_ms: RETRY_AFTER_MS, ..RefusalArgs::default() };
        self::refuse(core, connection, header, Status::TooManyInFlight, message, &more);
        return Done::GoOn;
    }
    if connection.in_flight() >= core.state.config.max_in_flight {
        let most = core.state.config.max_in_flight;
        let message =
            format!("{most} requests of this connection wait for their answers, the most allowed");
        let more = RefusalArgs { retry_after_ms: RETRY_AFTER_MS, ..RefusalArgs::default() };
        self::refuse(core, connection, header, Status::TooManyInFlight, &message, &more);
        return Done::GoOn;
    }
    if !header.is_one_way() {
        connection.requested(opcode, header.correlation.get(), bytes.len());
    }
    if core.slot_of(shard).is_none() {
        connection.reached_out.set(true);
    }
    core.request(now, shard, connection.id, frame, bytes);
    Done::GoOn
}

fn hello(core: &Rc<Core>, connection: &Rc<Connection>, frame: Frame<'_>) -> Done {
    let header = frame.header;
    let refuse = |status, message: &str| {
        refuse(core, connection, header, status, message, &RefusalArgs::default());
        Done::Refused
    };
    let Ok(hello) = frame::read_table::<Hello<'_>>(frame.table) else {
        return refuse(Status::BadRequest, "the table of Hello does not verify");
    };
    if connection.is_surplus {
        let most = core.state.config.max_connections;
        return refuse(
            Status::TooManyConnections,
            &format!("{most} connections are open, the most allowed"),
        );
    }
    if hello.version() < u16::from(frame::VERSION) {
        let message =
            format!("protocol version {} is spoken here, not {}", frame::VERSION, hello.version());
        return refuse(Status::VersionMismatch, &message);
    }
    let shards = core.state.shards();
    let shard = match hello.shard() {
        // Wherever it was accepted; a client that cares names a shard.
        ANY_SHARD => {
            core.slots.get(connection.id as usize % core.slots.len().max(1)).map(|s| s.number)
        }
        named => Some(named),
    };
    let shard = shard.unwrap_or(HOME_SHARD);
    if shard >= shards {
        return refuse(
            Status::BadRequest,
            &format!("there is no shard {shard}, this broker has {shards}"),
        );
    }
    let (before, serving) = (connection.shard.get(), core.state.core_of(shard));
    if before.is_none() && serving != core.id {
        return Done::HandOver(serving);
    }
    // Asked again, the connection stays where it is.
    let shard = before.unwrap_or(shard);
    connection.shard.set(Some(shard));
    answer_hello(core, connection, header, shard);
    Done::GoOn
}

fn answer_hello(core: &Rc<Core>, connection: &Rc<Connection>, header: &FrameHeader, shard: u16) {
    let config = &core.state.config;
    let mut out = core.scratch.borrow_mut();
    out.clear();
    let correlation = header.correlation.get();
    core.frames.borrow_mut().answer(&mut out, Opcode::Hello.code(), correlation, 0, |fbb| {
        let cluster = Some(fbb.create_string(&config.cluster));
        let broker = Some(fbb.create_string(&config.broker));
        let args = HelloAnswerArgs {
            version: u16::from(frame::VERSION),
            features: FEATURES,
            cluster,
            broker,
            broker_id: config.broker_id,
            shards: core.state.shards(),
            shard,
            instance: core.state.instance,
            max_frame_bytes: u32::try_from(config.max_frame_bytes.0).unwrap_or(u32::MAX),
            max_body_bytes: limits::BODY_BYTES_MAX as u32,
            max_properties: limits::PROPERTIES_MAX as u32,
            max_properties_bytes: limits::PROPERTIES_BYTES_MAX as u32,
            server_ms: wall_ms(),
        };
        HelloAnswer::create(fbb, &args)
    });
    connection.push(&out, &[]);
    core.to_flush(Rc::clone(connection));
}

fn ping(core: &Rc<Core>, connection: &Rc<Connection>, frame: Frame<'_>) {
    let header = frame.header;
    if header.is_one_way() {
        return;
    }
    let Ok(ping) = frame::read_table::<Ping<'_>>(frame.table) else {
        let message = "the table of Ping does not verify";
        return refuse(
            core,
            connection,
            header,
            Status::BadRequest,
            message,
            &RefusalArgs::default(),
        );
    };
    let mut out = core.scratch.borrow_mut();
    out.clear();
    let correlation = header.correlation.get();
    core.frames.borrow_mut().answer(&mut out, Opcode::Ping.code(), correlation, 0, |fbb| {
        let args = PingAnswerArgs { sent_ms: ping.sent_ms(), server_ms: wall_ms() };
        PingAnswer::create(fbb, &args)
    });
    connection.push(&out, &[]);
    core.to_flush(Rc::clone(connection));
}

fn refuse(
    core: &Rc<Core>,
    connection: &Rc<Connection>,
    header: &FrameHeader,
    status: Status,
    message: &str,
    more: &RefusalArgs<'_>,
) {
    if header.is_one_way() {
        return;
    }
    let mut out = core.scratch.borrow_mut();
    out.clear();
    let (opcode, correlation) = (header.opcode.get(), header.correlation.get());
    core.frames.borrow_mut().refuse_with(&mut out, opcode, correlation, status, message, more);
    connection.push(&out, &[]);
    core.to_flush(Rc::clone(connection));
}

/// Refuses bytes that are no frame. Where the header itself could be read, its sender learns which of
/// its requests it was.
fn refuse_bytes(core: &Rc<Core>, connection: &Rc<Connection>, bytes: &[u8], error: &FrameError) {
    tracing::debug!(connection = connection.id, "closed: {error}");
    let whose = match error {
        FrameError::TooLarge { .. } => frame::parse_header(bytes, u32::MAX).ok().flatten(),
        _ => None,
    };
    let (opcode, correlation) = whose.map_or((0, 0), |h| (h.opcode.get(), h.correlation.get()));
    let mut out = core.scratch.borrow_mut();
    out.clear();
    core.frames.borrow_mut().refuse(
        &mut out,
        opcode,
        correlation,
        error.status(),
        &error.to_string(),
    );
    connection.push(&out, &[]);
    core.to_flush(Rc::clone(connection));
}
