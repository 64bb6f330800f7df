//! Vandals: requests that no honest client sends. Each must be answered, most with a refusal, and nothing may
//! come of it (promise no-trust).

use crate::sim::client::producer::append;
use crate::sim::client::{Context, Phase};
use crate::sim::talk::{Entry, Intent, Request, Wanted, Wish};
use ringmq_schema::error::Status;
use ringmq_schema::frame::{ANY_SHARD, FLAG_ONE_WAY, FrameHeader};
use ringmq_schema::opcode::{Opcode, Place};
use ringmq_schema::zerocopy::IntoBytes;

/// Bytes of a record's header: see schema's record.rs.
const HEADER_BYTES: usize = 128;

/// See the module.
#[derive(Debug, Default)]
pub struct Vandal;

impl Vandal {
    /// See [`super::Client`].
    pub fn wake(&mut self, context: &mut Context<'_>) {
        if context.phase != Phase::Living {
            return;
        }
        let shard = context.random.below(u64::from(context.plan.shards)) as u16;
        match context.random.below(4) {
            0 => self.damaged(context),
            1 => self.absurd(context, shard),
            _ => self.garbage(context, shard),
        }
    }

    /// Random bytes where the table and the run should be.
    fn garbage(&self, context: &mut Context<'_>, shard: u16) {
        let served = |o: &&Opcode| matches!(o.place(), Place::Shard | Place::Home);
        let opcodes: Vec<Opcode> = Opcode::ALL.iter().filter(served).copied().collect();
        let opcode = match context.random.below(8) {
            0 => context.random.below(1 << 16) as u16 | 0x8000,
            1 => Opcode::QueryRoute.code(),
            _ => context.random.pick(&opcodes).code(),
        };
        let known = opcodes.iter().any(|o| o.code() == opcode);
        let mut table = vec![0; context.random.skewed(0, 400) as usize];
        context.random.fill(&mut table);
        if let Some(first) = table.first_chunk_mut::<4>().filter(|_| context.random.percent(70)) {
            // A root that lies in the table gets further.
            *first = [(context.random.below(64) * 4) as u8, 0, 0, 0];
        }
        let mut run = vec![0; context.random.skewed(0, 4096) as usize];
        context.random.fill(&mut run);
        let one_way = context.random.once_in(8);
        // Few random bytes may make a table that says nothing: such a request is as good as any.
        let intent = if known { Intent::Idle } else { Intent::Garbage };
        let mut request = context.words.figures(shard);
        let flags = if one_way { FLAG_ONE_WAY } else { 0 };
        let correlation = request.correlation;
        let header = FrameHeader::new(
            opcode,
            flags,
            ANY_SHARD,
            Status::Ok,
            correlation,
            table.len(),
            run.len(),
        );
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(&table);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend_from_slice(&run);
        request = Request { shard, correlation, one_way, bytes, intent };
        context.send(request);
    }

    /// Tables that verify and make no sense.
    fn absurd(&self, context: &mut Context<'_>, shard: u16) {
        let wild = [0, 1, 7, u32::MAX];
        let queue = (*context.random.pick(&wild), *context.random.pick(&wild[2..]));
        let group = u32::MAX - context.random.below(3) as u32;
        let offset = *context.random.pick(&[0, u64::MAX, 1 << 63]);
        let generation = *context.random.pick(&[0, 1, u32::MAX]);
        let member = u128::from(context.random.number());
        let max = *context.random.pick(&wild);
        let request = match context.random.below(5) {
            0 => {
                let wanted = vec![Wanted { queue, offset, generation, wish: Some(Wish::Tag(0)) }];
                context.words.fetch(shard, group, member, max, max, max.max(1), wanted)
            }
            1 => context.words.commit(
                shard,
                group,
                member,
                vec![Entry { queue, offset, generation }],
            ),
            2 => context.words.offsets(shard, group, vec![queue; 3]),
            3 => context.words.search(shard, offset as i64, vec![queue; 2]),
            _ => context.words.leave(shard, "no\u{0}name", member),
        };
        let request = Request { intent: Intent::Idle, ..request };
        context.send(request);
    }

    /// Honest messages, damaged where their checksums or their address see it.
    fn damaged(&self, context: &mut Context<'_>) {
        let queues = context.queues();
        if queues.is_empty() {
            return;
        }
        let queue = *context.random.pick(&queues);
        let first = context.oracle.messages.count();
        let wanted = context.random.between(1, 3) as u32;
        let mut run = append(context, queue, wanted, 300, 0, 0);
        let count = context.oracle.messages.count() - first;
        let mut records = count;
        let random = &mut *context.random;
        match random.below(6) {
            0 => records = *random.pick(&[0, count + 1, u32::MAX]),
            1 => run.truncate(run.len() - 8),
            2 => run.extend_from_slice(&[0; 8]),
            3 => {
                // No message: a record that only the broker may write.
                run[6] = *random.pick(&[0, 16, 17, 18, 19, 24, 99, 129, 130]);
            }
            4 => {
                let at = *random.pick(&[0, 4, 5, 12, 16, 20, 24]);
                run[at] ^= 1 << random.below(8);
            }
            _ => {
                // The first payload: its root offset lies at its beginning.
                let at = HEADER_BYTES + random.index(4);
                run[at] ^= 1 << random.below(8);
            }
        }
        let intent = Intent::Damaged { first, count };
        let shard = context.shard_of(queue);
        let request = context.words.produce(shard, false, queue, records, 0, &run, intent);
        context.send(request);
    }
}
