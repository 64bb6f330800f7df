//! Which messages a filter wants, and which groups got what they want.
//!
//! What is judged:
//! - what comes with a filter is wanted (exactness), and of what is wanted nothing is left out;
//! - in the end the members of each group have got every message that it wants (promise: at-least-once);
//! - what is said to be passed over is unwanted, or gone.
//!
//! Whether a message is wanted follows from what it was made of (`talk::wish`).

use super::messages::{Message, Messages};
use crate::sim::talk::{QueueKey, Wish};
use crate::sim::{Verdict, violation};
use std::collections::{BTreeMap, BTreeSet};

impl Messages {
    fn at(&self, queue: QueueKey, offset: u64) -> Option<&Message> {
        let slot = self.queues.get(&queue)?.slots.get(offset as usize)?;
        slot.map(|index| &self.messages[index as usize])
    }

    /// Whether what lies at an offset and was just seen is wanted.
    pub fn is_wanted(&self, queue: QueueKey, offset: u64, wish: &Wish) -> bool {
        self.at(queue, offset).is_some_and(|message| message.is_wanted(wish))
    }

    /// Whether the message at an offset, if it is known, may be left out. Where one may have gone with the power, a
    /// delayed one may be.
    pub fn may_be_left_out(&self, queue: QueueKey, offset: u64, wish: &Wish) -> bool {
        let message = self.at(queue, offset);
        message.is_none_or(|message| !message.is_wanted(wish) || message.may_have_gone())
    }

    /// Offsets of a queue below `end` whose messages are known to be there and whole.
    fn whole(&self, queue: QueueKey, end: u64) -> impl Iterator<Item = (u64, &Message)> {
        let of = self.queues.get(&queue);
        let slots = of.into_iter().flat_map(move |of| of.slots.iter().zip(0..end));
        slots.filter_map(move |(slot, offset)| {
            let message = &self.messages[(*slot)? as usize];
            let is_lost = of.is_some_and(|of| of.lost.contains(&offset) || offset < of.min);
            let is_spoiled = match message.position {
                Some(position) => self.is_rotten(message.sent.shard, position),
                None => self.has_rot(message.sent.shard),
            };
            (!is_lost && !is_spoiled && !message.doubtful).then_some((offset, message))
        })
    }

    /// Offsets before this one whose messages are of its message group, and wanted.
    pub fn before_in_lane(
        &self,
        queue: QueueKey,
        offset: u64,
        lane: u8,
        wish: Option<Wish>,
    ) -> Vec<u64> {
        let is_before = |message: &Message| {
            message.sent.traits.lane == lane && wish.is_none_or(|wish| message.is_wanted(&wish))
        };
        let whole = self.whole(queue, offset);
        whole.filter(|(_, message)| is_before(message)).map(|(offset, _)| offset).collect()
    }
}

impl Message {
    fn is_wanted(&self, wish: &Wish) -> bool {
        wish.wants(&self.sent.traits, self.sent.tag_hash)
    }
}

/// What the members of groups got, and what each group wants; `None`: everything.
#[derive(Debug, Default)]
pub struct Deliveries {
    wishes: BTreeMap<u32, Option<Wish>>,
    got: BTreeSet<(u32, QueueKey, u64)>,
}

impl Deliveries {
    /// A group got these offsets of a queue. Before it knows a topic it fetches everything of it.
    pub fn came(
        &mut self,
        group: u32,
        wish: Option<Wish>,
        queue: QueueKey,
        offsets: impl Iterator<Item = u64>,
    ) {
        let known = self.wishes.entry(group).or_default();
        *known = wish.or(*known);
        self.got.extend(offsets.map(|offset| (group, queue, offset)));
    }

    /// Everything was consumed up to where the groups have committed: whatever a group wants has come.
    pub fn all_came(
        &self,
        messages: &Messages,
        committed: impl Fn(u32, QueueKey) -> Option<u64>,
    ) -> Verdict {
        for (group, wish) in &self.wishes {
            for queue in messages.queues.keys() {
                let Some(end) = committed(*group, *queue) else { continue };
                let missing = messages.whole(*queue, end).find(|(offset, message)| {
                    wish.is_none_or(|wish| message.is_wanted(&wish))
                        && !self.got.contains(&(*group, *queue, *offset))
                });
                if let Some((offset, message)) = missing {
                    return violation(format!(
                        "group {group} wants {wish:?}, and never got {offset} of {queue:?}: {message:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}
