//! What a shard does for messages, path by path: for counting and for timing.
#![allow(unreachable_pub)] // Each user is a program of its own.

#[path = "../../tests/bare/mod.rs"]
mod bare;

use bare::{World, fetch_frame, produce_frame, small_frame, world};
use ringmq_core::Input;
use ringmq_schema::admin::{CreateGroup, CreateGroupArgs};
use ringmq_schema::build::FrameBuilder;
use ringmq_schema::frame::{self, read_table};
use ringmq_schema::opcode::Opcode;
use ringmq_schema::pop::{Ack, AckArgs, Pop, PopAnswer, PopArgs, Receipt};

/// A path: its name, messages in a round, and what makes a round.
pub struct Path {
    pub name: &'static str,
    pub messages: u64,
    pub begin: fn() -> Box<dyn FnMut()>,
}

pub const PATHS: [Path; 6] = [
    Path { name: "append, single messages, 64 in a turn", messages: 64, begin: singles },
    Path { name: "append, batches of 100", messages: 100, begin: || batches(produce_frame(100)) },
    Path {
        name: "append 64 bytes, batches of 1000",
        messages: 1000,
        begin: || batches(small_frame(1000)),
    },
    Path { name: "append and fetch, batches of 100", messages: 100, begin: || fetches(None) },
    Path {
        name: "append and fetch by an expression, batches of 100",
        messages: 100,
        begin: || fetches(Some("region = 'eu' AND n < 10 AND missing IS NULL")),
    },
    Path { name: "append, pop and acknowledge, 32 at a time", messages: 32, begin: pops },
];

fn singles() -> Box<dyn FnMut()> {
    let (mut world, produce) = (world(), produce_frame(1));
    Box::new(move || {
        (0..64).for_each(|_| world.request(&produce));
        world.handle(Input::TurnEnd);
    })
}

fn batches(produce: Vec<u8>) -> Box<dyn FnMut()> {
    let mut world = world();
    Box::new(move || {
        world.request(&produce);
        world.handle(Input::TurnEnd);
    })
}

fn fetches(filter: Option<&'static str>) -> Box<dyn FnMut()> {
    let (mut world, produce) = (world(), produce_frame(100));
    let (mut frames, mut fetch, mut offset) = (FrameBuilder::new(), Vec::new(), 0);
    Box::new(move || {
        fetch_frame(&mut frames, &mut fetch, offset, filter);
        world.request(&fetch);
        world.request(&produce);
        world.handle(Input::TurnEnd);
        offset += 100;
    })
}

fn pops() -> Box<dyn FnMut()> {
    let (mut world, produce) = (world(), produce_frame(32));
    let (mut frames, mut bytes) = (FrameBuilder::new(), Vec::new());
    frames.request(&mut bytes, Opcode::CreateGroup, 0, 3, &[], |fbb| {
        let name = Some(fbb.create_string("g"));
        CreateGroup::create(fbb, &CreateGroupArgs { name, settings: None })
    });
    world.request(&bytes);
    world.handle(Input::TurnEnd);
    let mut receipts = Vec::new();
    Box::new(move || {
        bytes.clear();
        frames.request(&mut bytes, Opcode::Pop, 0, 4, &[], |fbb| {
            let args = PopArgs {
                group: 1,
                topic: 1,
                start: -1,
                max_records: 32,
                max_bytes: 1 << 20,
                invisible_ms: 30_000,
                wait_ms: 1000,
                ..PopArgs::default()
            };
            Pop::create(fbb, &args)
        });
        world.request(&bytes);
        world.request(&produce);
        world.handle(Input::TurnEnd);
        take_receipts(&world, &mut receipts);
        bytes.clear();
        frames.request(&mut bytes, Opcode::Ack, 0, 5, &[], |fbb| {
            let receipts = Some(fbb.create_vector(&receipts));
            Ack::create(fbb, &AckArgs { group: 1, receipts })
        });
        world.request(&bytes);
        world.handle(Input::TurnEnd);
        assert_eq!(world.shard.figures().popped_in_flight, 0, "all are acknowledged");
    })
}

/// Of the messages in the last answer that has any.
fn take_receipts(world: &World, receipts: &mut Vec<Receipt>) {
    receipts.clear();
    // Of an answer only what is in front of the run is kept: the table can be read all the same.
    let table = &world.head[size_of::<frame::FrameHeader>()..];
    let answer = read_table::<PopAnswer<'_>>(table).expect("an answer to a pop");
    let popped = answer.records().into_iter().flatten();
    receipts.extend(popped.map(|p| Receipt::new(1, p.queue(), p.offset(), p.nonce())));
    assert_eq!(receipts.len(), 32, "all that was appended is popped");
}
