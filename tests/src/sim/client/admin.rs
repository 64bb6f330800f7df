//! Admins: topics come and go, offsets are reset, figures are asked for.

use crate::sim::client::{Context, Phase};
use crate::sim::oracle::topics::{Topic, TopicState};
use crate::sim::plan::Plan;
use crate::sim::talk::{Entry, Intent, Reply};

/// Name of a topic that is there from the beginning and stays.
pub fn lasting_topic(number: usize) -> String {
    format!("lasting-{number}")
}

/// Topics of one run at most: each is asked for after every restart.
const TOPICS_MAX: usize = 10;

/// See the module.
#[derive(Debug)]
pub struct Admin {
    lasting: Vec<String>,
    under_way: bool,
    /// Groups whose ids are known.
    groups: Vec<u32>,
}

impl Admin {
    /// One that begins by making the plan's topics.
    pub fn new(plan: &Plan) -> Admin {
        let lasting = (0..plan.topics).map(lasting_topic).collect();
        Admin { lasting, under_way: false, groups: vec![1, 2] }
    }

    /// See [`super::Client`].
    pub fn wake(&mut self, context: &mut Context<'_>) {
        if self.under_way || !context.listed || context.phase == Phase::Quiet {
            return;
        }
        let missing = self
            .lasting
            .iter()
            .find(|name| !context.oracle.topics.live().any(|(_, _, topic)| topic.name == **name));
        if let Some(name) = missing.cloned() {
            return self.create(context, &name);
        }
        if context.phase != Phase::Living {
            return;
        }
        match context.random.below(24) {
            0 if context.oracle.topics.all().len() < TOPICS_MAX => {
                let number = context.random.below(6);
                self.create(context, &format!("passing-{number}"));
            }
            1 => self.delete(context),
            2 => self.reset(context),
            3 => {
                let shard = context.random.below(u64::from(context.plan.shards)) as u16;
                let request = context.words.figures(shard);
                context.send(request);
            }
            _ => {}
        }
    }

    fn create(&mut self, context: &mut Context<'_>, name: &str) {
        let there = |t: &Topic| t.name == name && t.state != TopicState::Absent;
        if context.oracle.topics.all().iter().any(there) {
            return;
        }
        let queues = context.random.skewed(1, 8) as u32;
        let flush = *context.random.pick(&[0, 0, 1, 2]);
        // What lasts is kept, so that members and probes find everything.
        let expires = name.starts_with("passing") && context.random.percent(50);
        let keep = *context.random.pick(&[1, 64 << 10, 256 << 10]);
        let keep = if expires { keep } else { 0 };
        let is_fifo = !expires && context.random.once_in(3);
        let topic = context.oracle.topics.create(name, queues, flush, expires, is_fifo);
        let request = context.words.create(topic, name, queues, flush, keep, is_fifo);
        self.under_way = true;
        context.send(request);
    }

    fn delete(&mut self, context: &mut Context<'_>) {
        let passing = context.oracle.topics.live().find(|(_, _, t)| t.name.starts_with("passing"));
        let Some((topic, name)) = passing.map(|(index, _, t)| (index, t.name.clone())) else {
            return;
        };
        let request = context.words.delete(topic, &name);
        self.under_way = true;
        context.send(request);
    }

    fn reset(&mut self, context: &mut Context<'_>) {
        let queues = context.queues();
        let group = *context.random.pick(&self.groups);
        let queue = *context.random.pick(&queues);
        // Only where the group has committed: elsewhere it may not be known.
        let Some(end) = context.oracle.groups.floor(group, queue) else { return };
        let offset = context.random.below(end + 1);
        let entry = Entry { queue, offset, generation: 0 };
        let request = context.words.reset(context.shard_of(queue), group, entry);
        context.send(request);
    }

    /// See [`super::Client`].
    pub fn hear(&mut self, intent: &Intent, _reply: &Reply) {
        if matches!(intent, Intent::Create { .. } | Intent::Delete { .. }) {
            self.under_way = false;
        }
    }

    /// See [`super::Client`].
    pub fn cut(&mut self) {
        self.under_way = false;
    }
}
