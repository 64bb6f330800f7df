//! Records of the shard's own state: how topics, groups, offsets and owners stand in the log.
//!
//! Little endian, fixed fields first, names last, each payload opened by a version byte. Reading is bounds
//! checked: what does not parse is damage, never a panic.

use crate::peer::{
    Change, GroupSettings, Ownership, QueueId, RegistryChange, RetryPauses, TopicSettings,
};
use crate::timer::Key;

const VERSION: u8 = 1;

/// Reads fixed-width numbers off the front of a payload.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    pub(crate) fn u128(&mut self) -> Option<u128> {
        Some(u128::from_le_bytes(self.take(16)?.try_into().ok()?))
    }

    fn version(&mut self) -> Option<()> {
        (self.u8()? == VERSION).then_some(())
    }

    fn name(&mut self) -> Option<String> {
        let name = String::from_utf8(self.0.to_vec()).ok();
        self.0 = &[];
        name
    }
}

/// Payload of a `Topic` or `Group` record.
pub(crate) fn write_change(change: &RegistryChange) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.extend_from_slice(&change.version.to_le_bytes());
    match &change.change {
        Change::Topic { id, settings } => {
            out.push(1);
            out.extend_from_slice(&id.to_le_bytes());
            out.extend_from_slice(&settings.read_queues.to_le_bytes());
            out.extend_from_slice(&settings.write_queues.to_le_bytes());
            out.extend_from_slice(&[settings.permission, settings.message_type, settings.flush]);
            out.extend_from_slice(&settings.retention_ms.to_le_bytes());
            out.extend_from_slice(&settings.retention_bytes.to_le_bytes());
            out.extend_from_slice(settings.name.as_bytes());
        }
        Change::TopicDeleted { id } => {
            out.push(2);
            out.extend_from_slice(&id.to_le_bytes());
        }
        Change::Group { id, name, settings } => {
            out.push(5);
            out.extend_from_slice(&id.to_le_bytes());
            write_group_settings(settings, &mut out);
            out.extend_from_slice(name.as_bytes());
        }
        Change::GroupDeleted { id } => {
            out.push(4);
            out.extend_from_slice(&id.to_le_bytes());
        }
    }
    out
}

/// Reads what [`write_change`] wrote.
pub(crate) fn read_change(payload: &[u8]) -> Option<RegistryChange> {
    let mut reader = Reader(payload);
    reader.version()?;
    let version = reader.u64()?;
    let tag = reader.u8()?;
    let id = reader.u32()?;
    let change = match tag {
        1 => {
            let (read_queues, write_queues) = (reader.u32()?, reader.u32()?);
            let (permission, message_type, flush) = (reader.u8()?, reader.u8()?, reader.u8()?);
            let (retention_ms, retention_bytes) = (reader.u64()?, reader.u64()?);
            let settings = TopicSettings {
                name: reader.name()?,
                read_queues,
                write_queues,
                permission,
                message_type,
                retention_ms,
                retention_bytes,
                flush,
            };
            Change::Topic { id, settings }
        }
        2 => Change::TopicDeleted { id },
        // Written before groups had settings.
        3 => Change::Group { id, name: reader.name()?, settings: GroupSettings::default() },
        4 => Change::GroupDeleted { id },
        5 => {
            let settings = read_group_settings(&mut reader)?;
            Change::Group { id, name: reader.name()?, settings }
        }
        _ => return None,
    };
    Some(RegistryChange { version, change })
}

/// `u8 consume_enabled, u16 max_attempts, u8 kind of pauses`, then 0: nothing; 1: `u8 count, (u64 ms)*`;
/// 2: `u64 first ms, u32 factor in percent, u64 longest ms`.
fn write_group_settings(settings: &GroupSettings, out: &mut Vec<u8>) {
    out.push(u8::from(settings.consume_enabled));
    out.extend_from_slice(&settings.max_attempts.to_le_bytes());
    match &settings.retry {
        RetryPauses::Default => out.push(0),
        RetryPauses::List(pauses) => {
            assert!(pauses.len() <= usize::from(u8::MAX), "bounded when it was asked for");
            out.extend_from_slice(&[1, pauses.len() as u8]);
            pauses.iter().for_each(|ms| out.extend_from_slice(&ms.to_le_bytes()));
        }
        RetryPauses::Growing { first_ms, factor_percent, longest_ms } => {
            out.push(2);
            out.extend_from_slice(&first_ms.to_le_bytes());
            out.extend_from_slice(&factor_percent.to_le_bytes());
            out.extend_from_slice(&longest_ms.to_le_bytes());
        }
    }
}

fn read_group_settings(reader: &mut Reader<'_>) -> Option<GroupSettings> {
    let consume_enabled = reader.u8()? != 0;
    let max_attempts = u16::from_le_bytes(reader.take(2)?.try_into().ok()?);
    let retry = match reader.u8()? {
        0 => RetryPauses::Default,
        1 => {
            let count = reader.u8()?;
            let pauses: Option<Vec<u64>> = (0..count).map(|_| reader.u64()).collect();
            RetryPauses::List(pauses.filter(|pauses| !pauses.is_empty())?)
        }
        2 => RetryPauses::Growing {
            first_ms: reader.u64()?,
            factor_percent: reader.u32()?,
            longest_ms: reader.u64()?,
        },
        _ => return None,
    };
    Some(GroupSettings { consume_enabled, max_attempts, retry })
}

/// One committed offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Committed {
    pub(crate) group: u32,
    pub(crate) queue: QueueId,
    pub(crate) offset: u64,
    /// How often the message there was delivered and not consumed.
    pub(crate) attempts: u16,
}

/// Of `Offsets` records that tell attempts.
const VERSION_WITH_ATTEMPTS: u8 = 2;

/// Payload of an `Offsets` record.
pub(crate) fn write_offsets(entries: &[Committed]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + entries.len() * 22);
    out.push(VERSION_WITH_ATTEMPTS);
    for entry in entries {
        out.extend_from_slice(&entry.group.to_le_bytes());
        out.extend_from_slice(&entry.queue.topic.to_le_bytes());
        out.extend_from_slice(&entry.queue.queue.to_le_bytes());
        out.extend_from_slice(&entry.offset.to_le_bytes());
        out.extend_from_slice(&entry.attempts.to_le_bytes());
    }
    out
}

/// Reads what [`write_offsets`] wrote, handing on entry by entry.
pub(crate) fn read_offsets(payload: &[u8], mut visit: impl FnMut(Committed)) -> Option<()> {
    let mut reader = Reader(payload);
    let version = reader.u8()?;
    if !matches!(version, VERSION | VERSION_WITH_ATTEMPTS) {
        return None;
    }
    while !reader.0.is_empty() {
        visit(Committed {
            group: reader.u32()?,
            queue: QueueId { topic: reader.u32()?, queue: reader.u32()? },
            offset: reader.u64()?,
            attempts: if version == VERSION { 0 } else { reader.u16()? },
        });
    }
    Some(())
}

/// Payload of an `Owner` record.
pub(crate) fn write_owner(owner: &Ownership) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.extend_from_slice(&owner.group.to_le_bytes());
    out.extend_from_slice(&owner.queue.topic.to_le_bytes());
    out.extend_from_slice(&owner.queue.queue.to_le_bytes());
    out.extend_from_slice(&owner.generation.to_le_bytes());
    out.extend_from_slice(&owner.member.to_le_bytes());
    out
}

/// Reads what [`write_owner`] wrote.
pub(crate) fn read_owner(payload: &[u8]) -> Option<Ownership> {
    let mut reader = Reader(payload);
    reader.version()?;
    Some(Ownership {
        group: reader.u32()?,
        queue: QueueId { topic: reader.u32()?, queue: reader.u32()? },
        generation: reader.u32()?,
        member: reader.u128()?,
    })
}

/// Payload of a `TimerEnd` record: `i64 due, u64 position, u32 topic, u32 queue`.
pub(crate) fn write_timer(due_ms: i64, position: u64, queue: QueueId) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.extend_from_slice(&due_ms.to_le_bytes());
    out.extend_from_slice(&position.to_le_bytes());
    out.extend_from_slice(&queue.topic.to_le_bytes());
    out.extend_from_slice(&queue.queue.to_le_bytes());
    out
}

/// Reads what [`write_timer`] wrote.
pub(crate) fn read_timer(payload: &[u8]) -> Option<(Key, QueueId)> {
    let mut reader = Reader(payload);
    reader.version()?;
    let key = Key { due_ms: reader.u64()? as i64, position: reader.u64()? };
    // Written before messages that wait were counted.
    if reader.0.is_empty() {
        return Some((key, QueueId { topic: 0, queue: 0 }));
    }
    Some((key, QueueId { topic: reader.u32()?, queue: reader.u32()? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_round_trip_and_no_prefix_panics() {
        let settings = TopicSettings {
            name: "orders".to_owned(),
            read_queues: 8,
            write_queues: 4,
            permission: 6,
            message_type: 2,
            retention_ms: 5,
            retention_bytes: 6,
            flush: 1,
        };
        let group = |retry| Change::Group {
            id: 1,
            name: "g".to_owned(),
            settings: GroupSettings { consume_enabled: false, max_attempts: 3, retry },
        };
        let growing = RetryPauses::Growing { first_ms: 10, factor_percent: 150, longest_ms: 1000 };
        let changes = [
            Change::Topic { id: 7, settings },
            Change::TopicDeleted { id: 7 },
            group(RetryPauses::Default),
            group(RetryPauses::List(vec![10, 20])),
            group(growing),
            Change::GroupDeleted { id: 1 },
        ];
        for change in changes {
            let change = RegistryChange { version: 3, change };
            let bytes = write_change(&change);
            assert_eq!(read_change(&bytes), Some(change));
            for end in 0..13 {
                assert_eq!(read_change(&bytes[..end]), None);
            }
        }
    }

    #[test]
    fn a_group_from_before_there_were_settings_has_those_by_default() {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&3u64.to_le_bytes());
        bytes.push(3);
        bytes.extend_from_slice(&1u32.to_le_bytes());
        bytes.extend_from_slice(b"billing");
        let (name, settings) = ("billing".to_owned(), GroupSettings::default());
        let change = Change::Group { id: 1, name, settings };
        assert_eq!(read_change(&bytes), Some(RegistryChange { version: 3, change }));
    }

    #[test]
    fn offsets_and_owners_round_trip() {
        let queue = QueueId { topic: 1, queue: 2 };
        let entries = [Committed { group: 9, queue, offset: 77, attempts: 3 }; 3];
        let mut read = Vec::new();
        read_offsets(&write_offsets(&entries), |entry| read.push(entry)).unwrap();
        assert_eq!(read, entries);
        // As it was before attempts were told.
        let old = [&[1, 9, 0, 0, 0][..], &write_offsets(&entries)[5..21]].concat();
        read.clear();
        read_offsets(&old, |entry| read.push(entry)).unwrap();
        assert_eq!(read, [Committed { attempts: 0, ..entries[0] }]);
        let owner = Ownership { group: 9, queue, member: 1 << 100, generation: 4 };
        let bytes = write_owner(&owner);
        assert_eq!(read_owner(&bytes), Some(owner));
        assert_eq!(read_owner(&bytes[..bytes.len() - 1]), None);
        let bytes = write_timer(-5, 4104, queue);
        let key = Key { due_ms: -5, position: 4104 };
        assert_eq!(read_timer(&bytes), Some((key, queue)));
        assert_eq!(read_timer(&bytes[..bytes.len() - 1]), None);
        assert_eq!(read_timer(&bytes[..17]), Some((key, QueueId { topic: 0, queue: 0 })));
    }
}
