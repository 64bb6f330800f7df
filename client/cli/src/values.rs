//! Values on the command line: durations, sizes, places in a queue.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringmq::{MessageRef, RecallHandle, SeekTo};

/// A place in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The first message that is still there.
    First,
    /// Behind the last message.
    Last,
    /// So long ago.
    Ago(Duration),
    /// A point in time.
    Time(SystemTime),
    /// An offset.
    Offset(u64),
}

impl Place {
    /// The time that it is, if it is one.
    pub fn time(self) -> Option<SystemTime> {
        match self.seek() {
            SeekTo::Time(time) => Some(time),
            _ => None,
        }
    }

    /// As the client takes it.
    pub fn seek(self) -> SeekTo {
        match self {
            Place::First => SeekTo::First,
            Place::Last => SeekTo::Last,
            Place::Ago(ago) => {
                SeekTo::Time(SystemTime::now().checked_sub(ago).unwrap_or(UNIX_EPOCH))
            }
            Place::Time(time) => SeekTo::Time(time),
            Place::Offset(offset) => SeekTo::Offset(offset),
        }
    }
}

/// `first`, `last`, `-10m`, `2026-01-31T12:00:00Z`, or an offset.
pub fn place(text: &str) -> Result<Place, String> {
    match text {
        "first" => return Ok(Place::First),
        "last" => return Ok(Place::Last),
        _ => {}
    }
    if let Some(ago) = text.strip_prefix('-') {
        return duration(ago).map(Place::Ago);
    }
    if let Ok(offset) = text.parse() {
        return Ok(Place::Offset(offset));
    }
    utc(text).map(Place::Time).ok_or_else(|| {
        "first, last, -10m (so long ago), 2026-01-31T12:00:00Z, or an offset".to_owned()
    })
}

/// `-10m` or `2026-01-31T12:00:00Z`.
pub fn time(text: &str) -> Result<Place, String> {
    let fault = || "-10m (so long ago) or 2026-01-31T12:00:00Z".to_owned();
    place(text).ok().filter(|place| place.time().is_some()).ok_or_else(fault)
}

/// The unique or the stored id of a message.
pub fn message(text: &str) -> Result<MessageRef, String> {
    text.parse().map_err(|_| {
        "a UUID, or a stored id with its broker as in broker-a/0003-00000000000a1b2c".to_owned()
    })
}

/// What a delayed message is taken back by.
pub fn recall_handle(text: &str) -> Result<RecallHandle, String> {
    text.parse().map_err(|_| {
        "broker/topic/queue/position/time/id, as `ringmq timer ls` prints it".to_owned()
    })
}

/// `500ms`, `10s`, `5m`, `72h`, `7d`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text);
    let milliseconds = match unit {
        "ms" => 1,
        "s" | "" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(format!("\"{unit}\" is no unit of time: ms, s, m, h or d, as in 72h")),
    };
    let number: u64 = number.parse().map_err(|_| "a number and a unit, as in 10s".to_owned())?;
    number
        .checked_mul(milliseconds)
        .map(Duration::from_millis)
        .ok_or_else(|| "longer than time itself".to_owned())
}

/// `1024`, `64KiB`, `256 MiB`, `1GiB`; `k`, `M`, `G` are powers of 1000.
pub fn byte_count(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text);
    let factor: u64 = match unit {
        "" | "B" => 1,
        "k" | "kB" => 1_000,
        "M" | "MB" => 1_000_000,
        "G" | "GB" => 1_000_000_000,
        "K" | "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(format!("\"{unit}\" is no unit of size: B, KiB, MiB or GiB")),
    };
    let number: u64 = number.parse().map_err(|_| "a number and a unit, as in 256MiB".to_owned())?;
    number.checked_mul(factor).ok_or_else(|| "more than can be counted".to_owned())
}

/// `key=value`.
pub fn property(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("key=value, as in -p region=eu".to_owned()),
    }
}

fn split_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (&text[..digits], text[digits..].trim())
}

/// `2026-01-31`, `2026-01-31T12:00`, `2026-01-31T12:00:05`, each with or without `Z`; always UTC.
fn utc(text: &str) -> Option<SystemTime> {
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (date, time) = text.split_once(['T', ' ']).unwrap_or((text, "0:0:0"));
    let numbers = |text: &str, separator| -> Option<Vec<u64>> {
        text.split(separator).map(|part| part.parse().ok()).collect()
    };
    let (date, time) = (numbers(date, '-')?, numbers(time, ':')?);
    let &[year, month, day] = date.as_slice() else { return None };
    let (hour, minute, second) = match *time.as_slice() {
        [hour, minute] => (hour, minute, 0),
        [hour, minute, second] => (hour, minute, second),
        _ => return None,
    };
    if !(1970..10_000).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// Howard Hinnant's `days_from_civil`, for years from 1970 on: years begin in March, so that the leap day
/// is the last one.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year / 400;
    let year_of_era = year % 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// CPUs by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpus(std::collections::BTreeSet<u32>);

impl Cpus {
    /// Whether it is one of them.
    pub fn contains(&self, cpu: u32) -> bool {
        self.0.contains(&cpu)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// `0-3,8`, as the kernel writes it.
pub fn cpus(text: &str) -> Result<Cpus, String> {
    const CPUS_MAX: u32 = 65_536;
    let mut cpus = std::collections::BTreeSet::new();
    for part in text.trim().split(',') {
        let wrong = || format!("\"{part}\" is no CPU: say them as 0-3,8");
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| wrong());
        let (first, last) = (number(first)?, number(last)?);
        if first > last || last >= CPUS_MAX {
            return Err(wrong());
        }
        cpus.extend(first..=last);
    }
    Ok(Cpus(cpus))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read() {
        assert_eq!(place("first"), Ok(Place::First));
        assert_eq!(place("-10m"), Ok(Place::Ago(Duration::from_secs(600))));
        assert_eq!(place("17"), Ok(Place::Offset(17)));
        let noon = UNIX_EPOCH + Duration::from_secs(1_769_860_800);
        assert_eq!(place("2026-01-31T12:00:00Z"), Ok(Place::Time(noon)));
        assert_eq!(place("2026-01-31 12:00"), Ok(Place::Time(noon)));
        let leap = UNIX_EPOCH + Duration::from_secs(951_782_400);
        assert_eq!(place("2000-02-29"), Ok(Place::Time(leap)));
        for wrong in
            ["", "yesterday", "2026-13-01", "-10 parsecs", "2026-01-31T25:00", "1969-01-01"]
        {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_and_durations_carry_units() {
        assert_eq!(byte_count("256 MiB"), Ok(256 << 20));
        assert_eq!(byte_count("1024"), Ok(1024));
        assert!(byte_count("1 parsec").is_err());
        assert!(byte_count("99999999999999 TiB").is_err());
        assert_eq!(duration("72h"), Ok(Duration::from_secs(72 * 3_600)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert!(duration("h").is_err());
    }

    #[test]
    fn cpus_are_read_as_the_kernel_writes_them() {
        let some = cpus("0-2,8\n").unwrap();
        assert!(some.contains(1) && some.contains(8) && !some.contains(3));
        assert_eq!(some.count(), 4);
        for wrong in ["", "a", "3-1", "1-", "0-4000000000"] {
            assert!(cpus(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn properties_have_a_key() {
        assert_eq!(property("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(property("=b").is_err() && property("a").is_err());
    }
}
