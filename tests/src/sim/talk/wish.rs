//! What a consumer wants of a queue: one tag, or what an SQL92 expression says. Whether a message is wanted is decided
//! here from the figures it was made of, and never by parsing or evaluating an expression.

use crate::sim::random::Random;

/// Values of the property `region`; the first stands for a message without one.
const REGIONS: [&str; 4] = ["", "eu", "us", "asia"];
/// Values of the property `amount` are below.
const AMOUNTS: u64 = 100;
/// Message groups of a run; 0 is none.
const LANES: u64 = 12;

/// What a message is made of, as filters and message groups see it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traits {
    /// Index of its region.
    region: u8,
    amount: u8,
    /// Its message group by number, 0: none.
    pub lane: u8,
}

impl Traits {
    /// Any; with a message group where one is needed.
    pub fn draw(random: &mut Random, is_fifo: bool) -> Traits {
        let region = random.index(REGIONS.len()) as u8;
        let amount = random.below(AMOUNTS) as u8;
        // One of them is busier than the others.
        let last = if random.once_in(5) { 1 } else { LANES };
        let lane = if is_fifo { random.between(1, last) as u8 } else { 0 };
        Traits { region, amount, lane }
    }

    /// The property that says where from.
    pub fn region(&self) -> Option<&'static str> {
        (self.region > 0).then(|| REGIONS[usize::from(self.region)])
    }

    /// The property that says how much.
    pub fn amount(&self) -> String {
        self.amount.to_string()
    }

    /// The message group.
    pub fn group(&self) -> Option<String> {
        (self.lane > 0).then(|| format!("order-{}", self.lane))
    }
}

/// The number of a message group that [`Traits::group`] named; 255: of another.
pub fn lane_of(group: Option<&str>) -> u8 {
    let number = |group: &str| group.strip_prefix("order-")?.parse().ok();
    group.map_or(0, |group| number(group).unwrap_or(u8::MAX))
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Hash of the one tag wanted.
    Tag(u32),
    /// From that region.
    From(u8),
    /// From another; what says nothing of it is not known to be.
    NotFrom(u8),
    /// Without a region, or with more than so much.
    NowhereOrAbove(u8),
    /// An amount between these, both included.
    Between(u8, u8),
    /// Of this tag, by its number in the producers' list, and at least so much.
    TaggedAtLeast(&'static str, u32, u8),
}

impl Wish {
    /// Any expression. Some want nearly everything, some next to nothing.
    pub fn draw(random: &mut Random, tags: &[&'static str]) -> Wish {
        let region = random.between(1, REGIONS.len() as u64 - 1) as u8;
        let amount = random.below(AMOUNTS) as u8;
        match random.below(5) {
            0 => Wish::From(region),
            1 => Wish::NotFrom(region),
            2 => Wish::NowhereOrAbove(amount),
            3 => Wish::Between(amount, amount + random.skewed(1, AMOUNTS) as u8),
            _ => {
                let tag = *random.pick(tags);
                Wish::TaggedAtLeast(tag, crc32fast::hash(tag.as_bytes()), amount)
            }
        }
    }

    /// As it is asked for; `None`: by the tag alone.
    pub fn sql(&self) -> Option<String> {
        let name = |region: &u8| REGIONS[usize::from(*region)];
        Some(match self {
            Wish::Tag(_) => return None,
            Wish::From(region) => format!("region = '{}'", name(region)),
            Wish::NotFrom(region) => format!("NOT region = '{}'", name(region)),
            Wish::NowhereOrAbove(amount) => format!("region IS NULL OR amount > {amount}"),
            Wish::Between(low, high) => format!("amount BETWEEN {low} AND {high}"),
            Wish::TaggedAtLeast(tag, _, low) => format!("TAGS = '{tag}' AND amount >= {low}"),
        })
    }

    /// Whether it is wanted.
    pub fn wants(&self, traits: &Traits, tag_hash: u32) -> bool {
        match self {
            Wish::Tag(tag) => *tag == tag_hash,
            Wish::From(region) => traits.region == *region,
            Wish::NotFrom(region) => traits.region != 0 && traits.region != *region,
            Wish::NowhereOrAbove(amount) => traits.region == 0 || traits.amount > *amount,
            Wish::Between(low, high) => (*low..=*high).contains(&traits.amount),
            Wish::TaggedAtLeast(_, tag, low) => tag_hash == *tag && traits.amount >= *low,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_told_apart_by_name() {
        let mut random = Random::new(3);
        for _ in 0..100 {
            let is_fifo = random.percent(50);
            let traits = Traits::draw(&mut random, is_fifo);
            assert_eq!(lane_of(traits.group().as_deref()), traits.lane);
            assert_eq!(is_fifo, traits.lane > 0);
        }
        assert_eq!(lane_of(Some("another")), u8::MAX);
    }
}
