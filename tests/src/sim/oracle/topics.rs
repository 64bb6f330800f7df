//! Topics as admins made and deleted them.
//!
//! What is judged: an acknowledged topic is there, with its id and settings, until its deletion; a deleted one
//! stays away; ids are never used again.

use crate::sim::talk::TopicSeen;
use crate::sim::{Verdict, violation};
use std::collections::BTreeMap;

/// What is known of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopicState {
    /// Asked for; it may or may not come to be.
    Creating,
    /// There.
    Live,
    /// Its end was asked for.
    Deleting,
    /// Not there, and it stays so.
    Absent,
}

/// One topic; made again under its name it is another.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Topic {
    pub name: String,
    pub queues: u32,
    pub flush: u8,
    pub id: Option<u32>,
    pub state: TopicState,
    /// Its creation was acknowledged, or the name servers were told: it must be served everywhere.
    pub told: bool,
    /// Only so many bytes of it are kept.
    pub expires: bool,
    /// Its messages have message groups, and come in their order.
    pub is_fifo: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Topics {
    all: Vec<Topic>,
    ids: BTreeMap<u32, usize>,
}

impl Topics {
    /// Notes a topic about to be asked for.
    pub fn create(
        &mut self,
        name: &str,
        queues: u32,
        flush: u8,
        expires: bool,
        is_fifo: bool,
    ) -> usize {
        let name = name.to_owned();
        self.all.push(Topic {
            name,
            queues,
            flush,
            id: None,
            state: TopicState::Creating,
            told: false,
            expires,
            is_fifo,
        });
        self.all.len() - 1
    }

    /// All of them.
    pub fn all(&self) -> &[Topic] {
        &self.all
    }

    /// Topics that can be used, with their ids.
    pub fn live(&self) -> impl Iterator<Item = (usize, u32, &Topic)> {
        let live = self.all.iter().enumerate().filter(|(_, t)| t.state == TopicState::Live);
        live.filter_map(|(index, topic)| Some((index, topic.id?, topic)))
    }

    /// Topics that are there or may be, with their ids.
    pub fn known(&self) -> impl Iterator<Item = (u32, &Topic)> {
        let known = |t: &&Topic| matches!(t.state, TopicState::Live | TopicState::Deleting);
        self.all.iter().filter(known).filter_map(|topic| Some((topic.id?, topic)))
    }

    /// Whether a queue of this topic must be served.
    pub fn must_serve(&self, id: u32) -> bool {
        let topic = self.ids.get(&id).map(|index| &self.all[*index]);
        topic.is_some_and(|topic| topic.told && topic.state == TopicState::Live)
    }

    /// Whether an index must have every message of this topic. Of one that expires, those that have are left out when it
    /// is made again; that no other is missing, readers show.
    pub fn must_be_indexed(&self, id: u32) -> bool {
        self.must_serve(id) && !self.may_expire(id)
    }

    /// Whether the admins made a topic with this id.
    pub fn is_known(&self, id: u32) -> bool {
        self.ids.contains_key(&id)
    }

    /// Whether messages of this topic may go from the front.
    pub fn may_expire(&self, id: u32) -> bool {
        self.ids.get(&id).is_some_and(|index| self.all[*index].expires)
    }

    /// Whether messages of this topic need message groups.
    pub fn is_fifo(&self, id: u32) -> bool {
        self.ids.get(&id).is_some_and(|index| self.all[*index].is_fifo)
    }

    /// The name servers are told of a topic: it is on all shards.
    pub fn told(&mut self, id: u32) {
        if let Some(index) = self.ids.get(&id) {
            self.all[*index].told = true;
        }
    }

    /// A creation was answered.
    pub fn created(&mut self, index: usize, seen: Option<&TopicSeen>) -> Verdict {
        let Some(seen) = seen else { return violation("a created topic is not named") };
        self.adopt(index, seen)?;
        self.all[index].told = true;
        Ok(())
    }

    /// A creation was refused for good.
    pub fn refused(&mut self, index: usize) {
        self.all[index].state = TopicState::Absent;
    }

    fn adopt(&mut self, index: usize, seen: &TopicSeen) -> Verdict {
        let topic = &mut self.all[index];
        let same = topic.name == seen.name
            && topic.queues == seen.queues
            && topic.flush == seen.flush
            && topic.is_fifo == seen.is_fifo
            && topic.id.is_none_or(|id| id == seen.id);
        if !same || seen.id == 0 {
            return violation(format!("{topic:?} is told as {seen:?}"));
        }
        let owner = *self.ids.entry(seen.id).or_insert(index);
        if owner != index {
            return violation(format!("{seen:?} has the id of {:?}", self.all[owner]));
        }
        topic.id = Some(seen.id);
        topic.state = TopicState::Live;
        Ok(())
    }

    /// A deletion goes out.
    pub fn deleting(&mut self, index: usize) {
        self.all[index].state = TopicState::Deleting;
    }

    /// A deletion was refused before anything was done.
    pub fn kept(&mut self, index: usize) {
        self.all[index].state = TopicState::Live;
    }

    /// A deletion was answered.
    pub fn deleted(&mut self, index: usize) {
        self.all[index].state = TopicState::Absent;
    }

    /// All topics after a restart, while no creation or deletion is under way.
    pub fn listed(&mut self, seen: &[TopicSeen]) -> Verdict {
        // Groups' own topics are the broker's.
        for one in seen.iter().filter(|one| !one.name.starts_with('%')) {
            let index = self.all.iter().rposition(|topic| {
                topic.name == one.name
                    && topic.id.is_none_or(|id| id == one.id)
                    && topic.state != TopicState::Absent
            });
            let Some(index) = index else {
                return violation(format!("{one:?} is there, and should not: {:?}", self.all));
            };
            self.adopt(index, one)?;
        }
        for topic in &mut self.all {
            let there = seen.iter().any(|one| topic.id == Some(one.id));
            if !there && topic.state == TopicState::Live {
                return violation(format!("{topic:?} is not there any more"));
            }
            if !there {
                topic.state = TopicState::Absent;
            }
        }
        Ok(())
    }
}
