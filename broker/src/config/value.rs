//! Values of settings as people write them: "256 MiB", "72h", "500ms".
//!
//! Invariant: what [`Value::show`] prints, [`Value::parse`] reads as the same value.

use ringmq_core::FlushMode;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// A setting's type.
pub trait Value: Sized {
    /// Reads it; the error says what was expected.
    fn parse(text: &str) -> Result<Self, String>;
    /// Writes it.
    fn show(&self) -> String;
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Bytes(pub u64);

impl Bytes {
    /// So many MiB.
    pub const fn mib(count: u64) -> Bytes {
        Bytes(count << 20)
    }

    /// For sizes of things in memory.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

const BYTE_UNITS: &[(&str, u64)] = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

const TIME_UNITS: &[(&str, u64)] =
    &[("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("ms", 1), ("m", 60_000), ("s", 1_000)];

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    Some((text[..end].replace('_', "").parse().ok()?, text[end..].trim()))
}

fn with_unit(text: &str, units: &[(&str, u64)], bare: Option<u64>) -> Option<u64> {
    let (number, unit) = number_and_unit(text)?;
    let factor = match units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) {
        Some((_, factor)) => *factor,
        None if unit.is_empty() => bare?,
        None => return None,
    };
    number.checked_mul(factor)
}

fn show_with_unit(value: u64, units: &[(&str, u64)], space: &str) -> String {
    let fits = |(_, factor): &&(&str, u64)| value >= *factor && value.is_multiple_of(*factor);
    // Binary units come first in the table, so a value is shown in the unit it was made of.
    match units.iter().find(fits) {
        Some((name, factor)) => format!("{}{space}{name}", value / factor),
        None => format!("{value}{space}{}", units.last().map_or("", |(name, _)| name)),
    }
}

impl Value for Bytes {
    fn parse(text: &str) -> Result<Bytes, String> {
        let expected = || format!("{text:?} is no number of bytes such as \"256 MiB\"");
        with_unit(text, BYTE_UNITS, Some(1)).map(Bytes).ok_or_else(expected)
    }

    fn show(&self) -> String {
        show_with_unit(self.0, BYTE_UNITS, " ")
    }
}

impl Value for Duration {
    fn parse(text: &str) -> Result<Duration, String> {
        let expected = || format!("{text:?} is no duration such as \"72h\", \"30s\" or \"500ms\"");
        with_unit(text, TIME_UNITS, None).map(Duration::from_millis).ok_or_else(expected)
    }

    fn show(&self) -> String {
        let ms = u64::try_from(self.as_millis()).unwrap_or(u64::MAX);
        if ms == 0 { "0s".to_owned() } else { show_with_unit(ms, &TIME_UNITS[..5], "") }
            .replace("min", "m")
    }
}

macro_rules! plain {
    ($($type:ty: $what:literal),*) => {$(
        impl Value for $type {
            fn parse(text: &str) -> Result<$type, String> {
                text.trim().parse().map_err(|_| format!(concat!("{:?} is no ", $what), text))
            }
            fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}

plain! {
    u16: "number from 0 to 65535", u32: "number", usize: "number",
    bool: "\"true\" or \"false\"", IpAddr: "IP address"
}

impl Value for String {
    fn parse(text: &str) -> Result<String, String> {
        Ok(text.to_owned())
    }

    fn show(&self) -> String {
        self.clone()
    }
}

impl Value for PathBuf {
    fn parse(text: &str) -> Result<PathBuf, String> {
        if text.is_empty() { Err("the path is empty".to_owned()) } else { Ok(PathBuf::from(text)) }
    }

    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Value for FlushMode {
    fn parse(text: &str) -> Result<FlushMode, String> {
        match text.to_ascii_lowercase().as_str() {
            "sync" => Ok(FlushMode::Sync),
            "async" => Ok(FlushMode::Async),
            _ => Err(format!("{text:?} is neither \"sync\" nor \"async\"")),
        }
    }

    fn show(&self) -> String {
        match self {
            FlushMode::Sync => "sync".to_owned(),
            FlushMode::Async => "async".to_owned(),
        }
    }
}

/// Several addresses, separated by `;` or `,`.
impl Value for Vec<String> {
    fn parse(text: &str) -> Result<Vec<String>, String> {
        let parts = text.split([';', ',']).map(str::trim).filter(|part| !part.is_empty());
        Ok(parts.map(str::to_owned).collect())
    }

    fn show(&self) -> String {
        self.join(";")
    }
}

/// `auto` or a number.
impl Value for Option<u16> {
    fn parse(text: &str) -> Result<Option<u16>, String> {
        if text == "auto" {
            return Ok(None);
        }
        match text.trim().parse() {
            Ok(0) | Err(_) => Err(format!("{text:?} is neither \"auto\" nor a number above 0")),
            Ok(number) => Ok(Some(number)),
        }
    }

    fn show(&self) -> String {
        self.map_or_else(|| "auto".to_owned(), |number| number.to_string())
    }
}

/// `auto` or text.
impl Value for Option<String> {
    fn parse(text: &str) -> Result<Option<String>, String> {
        Ok((text != "auto" && !text.is_empty()).then(|| text.to_owned()))
    }

    fn show(&self) -> String {
        self.clone().unwrap_or_else(|| "auto".to_owned())
    }
}

/// `off` or host:port.
impl Value for Option<SocketAddr> {
    fn parse(text: &str) -> Result<Option<SocketAddr>, String> {
        if text == "off" {
            return Ok(None);
        }
        let expected =
            |_| format!("{text:?} is neither \"off\" nor an address such as \"127.0.0.1:5557\"");
        text.parse().map(Some).map_err(expected)
    }

    fn show(&self) -> String {
        self.map_or_else(|| "off".to_owned(), |address| address.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_and_shown() {
        for (text, bytes) in
            [("256 MiB", 256 << 20), ("1KiB", 1024), ("7", 7), ("2 gb", 2_000_000_000), ("0", 0)]
        {
            let value = Bytes::parse(text).unwrap();
            assert_eq!(value.0, bytes, "{text}");
            assert_eq!(Bytes::parse(&value.show()), Ok(value), "{text}");
        }
        for (text, ms) in [("72h", 259_200_000), ("500ms", 500), ("5 s", 5000), ("1m", 60_000)] {
            let value = Duration::parse(text).unwrap();
            assert_eq!(value, Duration::from_millis(ms), "{text}");
            assert_eq!(Duration::parse(&value.show()), Ok(value), "{text} {}", value.show());
        }
        for bad in ["", "MiB", "1 XB", "-1", "1.5 MiB", "99999999999 TiB"] {
            assert!(Bytes::parse(bad).is_err(), "{bad}");
        }
        assert!(Duration::parse("5").is_err(), "a duration needs its unit");
    }
}
