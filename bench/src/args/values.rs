//! Values on the command line, and how they stand in `run.json`.

use std::time::Duration;

use serde::Serialize;

use super::Rate;
use crate::payload::STAMP_BYTES;

/// `10s`, `500ms`, `2m`, `1h`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit.trim() {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3_600.0,
        _ => return Err(format!("\"{unit}\" is no unit: use ms, s, m or h, as in 500ms")),
    };
    let number: f64 =
        number.parse().map_err(|_| format!("\"{text}\" is no duration, as 10s is"))?;
    Duration::try_from_secs_f64(number * seconds).map_err(|error| error.to_string())
}

pub(super) fn rate(text: &str) -> Result<Rate, String> {
    match text.replace('_', "").parse() {
        _ if text == "max" => Ok(Rate::Max),
        Ok(0) | Err(_) => Err("a number of messages per second above 0, or max".to_owned()),
        Ok(per_second) => Ok(Rate::PerSecond(per_second)),
    }
}

pub(super) fn body_bytes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bytes) if (STAMP_BYTES..=4 << 20).contains(&bytes) => Ok(bytes),
        _ => Err(format!("bytes from {STAMP_BYTES} (what identifies a message) to 4194304")),
    }
}

/// `5%` or `0.05`, above 0 and at most 1.
pub(super) fn percent(text: &str) -> Result<f64, String> {
    let (number, divisor) = match text.strip_suffix('%') {
        Some(number) => (number, 100.0),
        None => (text, 1.0),
    };
    match number.trim().parse::<f64>() {
        Ok(value) if value > 0.0 && value / divisor <= 1.0 => Ok(value / divisor),
        _ => Err("a share, as 5% or 0.05".to_owned()),
    }
}

pub(super) fn tolerance(text: &str) -> Result<f64, String> {
    match text {
        "0" | "0%" => Ok(0.0),
        _ => percent(text),
    }
}

pub(super) fn scale(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err("a number above 0 and at most 1".to_owned()),
    }
}

pub(super) fn rate_as_text<S: serde::Serializer>(rate: &Rate, to: S) -> Result<S::Ok, S::Error> {
    match rate {
        Rate::Max => to.serialize_str("max"),
        Rate::PerSecond(per_second) => to.serialize_u64(*per_second),
    }
}

pub(super) fn as_ms<S: serde::Serializer>(
    duration: &Option<Duration>,
    to: S,
) -> Result<S::Ok, S::Error> {
    duration.map(|duration| duration.as_millis() as u64).serialize(to)
}

pub(super) fn in_ms<S: serde::Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(duration.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_rates_are_read() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1_500)));
        assert!(duration("10 parsecs").is_err());
        assert!(duration("s").is_err());
        assert_eq!(rate("max"), Ok(Rate::Max));
        assert_eq!(rate("10_000"), Ok(Rate::PerSecond(10_000)));
        assert!(rate("0").is_err());
        assert!(body_bytes("39").is_err());
        assert_eq!((percent("5%"), percent("0.05")), (Ok(0.05), Ok(0.05)));
        assert!(percent("0").is_err() && percent("200%").is_err() && scale("2").is_err());
        assert_eq!(tolerance("0"), Ok(0.0));
    }
}
