//! What a producer knows: topics, lanes, batches on their way. All under one lock, held briefly; nothing
//! here waits.

use super::lane::{Batch, CLASSES, Class, Lane};
use super::receipt::Stored;
use super::select::{self, Faults, Ids, Target};
use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::pool::Key;
use crate::route::{Queue, TopicRoute};
use ringmq_schema::build::RecordBuilder;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// Buffers of ended batches that are kept for new ones.
const SPARE_MAX: usize = 32;

/// A batch on its way.
pub(super) struct InFlight {
    pub(super) batch: Batch,
    pub(super) lane: usize,
    pub(super) connection: Arc<Connection>,
    pub(super) correlation: u64,
    pub(super) sent: Instant,
}

/// A topic that messages were sent to.
pub(super) struct Topic {
    route: Arc<TopicRoute>,
    pub(super) targets: Vec<Target>,
    /// Lanes of each target.
    lanes: Vec<[Option<usize>; CLASSES]>,
    /// Lanes of all queues it ever had.
    every_lane: Vec<usize>,
    cursor: usize,
    /// Lane that plain (and one-way) messages stay on while its batch fills.
    current: [Option<usize>; CLASSES],
}

/// See the module.
pub(super) struct State {
    pub(super) topics: HashMap<Arc<str>, Topic>,
    pub(super) lanes: Vec<Lane>,
    pub(super) in_flight: HashMap<u64, InFlight>,
    pub(super) batches: u64,
    pub(super) faults: Faults,
    pub(super) builder: RecordBuilder,
    pub(super) ids: Ids,
    pub(super) spare: Vec<Vec<u8>>,
    /// Lanes whose open batch waits for the driver.
    pub(super) to_flush: Vec<usize>,
    /// Lanes that need a connection.
    pub(super) to_connect: Vec<(Key, usize)>,
    /// Topics whose route must be asked for again.
    pub(super) to_refresh: Vec<Arc<str>>,
    /// Batches that ended: told once the lock is released.
    pub(super) ended: Vec<(Batch, Result<Stored>)>,
    /// Route epoch that `topics` reflect.
    pub(super) epoch: u64,
    pub(super) closed: bool,
}

impl State {
    /// Id and birth of a message: its own if it was stored before.
    pub(super) fn identity_of(&mut self, message: &Message, now_ms: i64) -> ([u8; 16], i64) {
        match message.identity {
            Some((id, born_ms)) => (id.0, born_ms),
            None => (self.ids.next(now_ms), now_ms),
        }
    }

    pub(super) fn new() -> State {
        State {
            topics: HashMap::new(),
            lanes: Vec::new(),
            in_flight: HashMap::new(),
            batches: 0,
            faults: Faults::default(),
            builder: RecordBuilder::new(),
            ids: Ids::new(),
            spare: Vec::new(),
            to_flush: Vec::new(),
            to_connect: Vec::new(),
            to_refresh: Vec::new(),
            ended: Vec::new(),
            epoch: 0,
            closed: false,
        }
    }

    /// Takes over a topic's route: lanes follow their queues.
    pub(super) fn take_route(&mut self, topic: &Arc<str>, route: Arc<TopicRoute>) {
        let State { topics, lanes, .. } = self;
        let known = topics.entry(Arc::clone(topic)).or_insert_with(|| Topic {
            route: Arc::clone(&route),
            targets: Vec::new(),
            lanes: Vec::new(),
            every_lane: Vec::new(),
            // Producers that start together do not all begin at the same queue.
            cursor: select::of_group(topic, usize::MAX) ^ std::process::id() as usize,
            current: [None; CLASSES],
        });
        known.targets = select::targets(&route);
        known.route = route;
        known.current = [None; CLASSES];
        known.lanes = vec![[None; CLASSES]; known.targets.len()];
        known.cursor %= known.targets.len().max(1);
        for lane in &known.every_lane {
            let at = known.targets.iter().position(|t| t.queue == lanes[*lane].queue);
            lanes[*lane].moved(at.map(|at| known.targets[at].clone()));
            if let Some(at) = at {
                known.lanes[at][lanes[*lane].class as usize] = Some(*lane);
            }
        }
    }

    /// The lane for a message, or `None` when its topic's route is not known here.
    pub(super) fn lane_for(
        &mut self,
        message: &Message,
        one_way: bool,
        now: Instant,
    ) -> Result<Option<usize>> {
        let State { topics, lanes, faults, .. } = self;
        let Some(topic) = topics.get_mut(&message.topic) else { return Ok(None) };
        if topic.targets.is_empty() {
            return Ok(None);
        }
        if let Some(queue) = &message.queue {
            let at = topic.targets.iter().position(|target| *target.queue == *queue);
            let Some(at) = at else { return Err(no_such_queue(queue)) };
            return Ok(Some(topic.lane(lanes, at, Class::Ordered)));
        }
        if let Some(group) = &message.group {
            let at = select::of_group(group, topic.targets.len());
            return Ok(Some(topic.lane(lanes, at, Class::Ordered)));
        }
        let class = if one_way { Class::OneWay } else { Class::Plain };
        // Messages stay on one queue while a batch fills.
        if let Some(current) = topic.current[class as usize]
            && lanes[current].open.is_some()
            && !faults.is_avoided(&lanes[current].queue.broker, now)
        {
            return Ok(Some(current));
        }
        let lane = topic.next_lane(lanes, faults, class, None, now);
        topic.current[class as usize] = lane;
        Ok(lane)
    }

    /// A plain lane on another broker than `besides`, or else any.
    pub(super) fn other_lane(&mut self, lane: usize, now: Instant) -> Option<usize> {
        let State { topics, lanes, faults, .. } = self;
        let queue = Arc::clone(&lanes[lane].queue);
        let topic = topics.get_mut(&queue.topic)?;
        topic.next_lane(lanes, faults, lanes[lane].class, Some(&queue.broker), now)
    }

    /// Puts the lane on the list of those to flush.
    pub(super) fn list(&mut self, lane: usize) {
        if !std::mem::replace(&mut self.lanes[lane].listed, true) {
            self.to_flush.push(lane);
        }
    }

    /// Keeps the buffer of an ended batch for another.
    pub(super) fn recycle(&mut self, batch: Batch, batch_bytes: usize) {
        if self.spare.len() < SPARE_MAX
            && let Ok(run) = batch.run.try_into_mut()
        {
            let mut buffer = Vec::from(run);
            if buffer.capacity() <= batch_bytes * 2 {
                buffer.clear();
                self.spare.push(buffer);
            }
        }
    }

    /// Whether nothing is gathered, sealed or on its way.
    pub(super) fn is_drained(&self) -> bool {
        let idle = |lane: &Lane| lane.open.is_none() && lane.sealed.is_empty();
        self.in_flight.is_empty() && self.lanes.iter().all(idle)
    }
}

impl Topic {
    fn lane(&mut self, lanes: &mut Vec<Lane>, at: usize, class: Class) -> usize {
        *self.lanes[at][class as usize].get_or_insert_with(|| {
            lanes.push(Lane::new(self.targets[at].clone(), class));
            self.every_lane.push(lanes.len() - 1);
            lanes.len() - 1
        })
    }

    fn next_lane(
        &mut self,
        lanes: &mut Vec<Lane>,
        faults: &Faults,
        class: Class,
        besides: Option<&str>,
        now: Instant,
    ) -> Option<usize> {
        let at = faults.next(&self.targets, &mut self.cursor, besides, now)?;
        Some(self.lane(lanes, at, class))
    }
}

fn no_such_queue(queue: &Queue) -> Error {
    let text = "the topic's route has no such queue that takes messages";
    Error::new(ErrorKind::NotFound, "send", text).on(queue.to_string())
}
