//! Where a name server's settings come from: flag > environment > file > default.
//!
//! One list of keys says for each its name, meaning, reader and writer; flags (`--frame-bytes-max`),
//! environment (`RINGMQ_NAMESRV_FRAME_BYTES_MAX`), file (`frame_bytes_max = "1 MiB"`) and `--print-config`
//! all come from it. What is not in it is refused with a suggestion.

use crate::config::NamesrvConfig;
use std::fmt::Write;
use std::time::Duration;

/// Environment variables that are settings start with this.
pub const ENVIRONMENT_PREFIX: &str = "RINGMQ_NAMESRV_";

/// One setting.
pub struct Key {
    /// Its name in files.
    pub name: &'static str,
    /// What it means.
    pub help: &'static str,
    set: fn(&mut NamesrvConfig, &str) -> Result<(), String>,
    show: fn(&NamesrvConfig) -> String,
}

macro_rules! keys {
    ($($name:ident: $read:ident, $show:ident, $help:literal;)*) => {
        /// Every setting.
        pub const KEYS: &[Key] = &[$(Key {
            name: stringify!($name),
            help: $help,
            set: |config, text| {
                config.$name = $read(text)?;
                Ok(())
            },
            show: |config| $show(&config.$name),
        },)*];
    };
}

keys! {
    name: read_text, show_text, "Name shown to clients";
    listen: read_number, show_quoted, "Address to listen on; port 0 picks one";
    http_listen: read_optional, show_optional, "Address for /metrics, /healthz, /readyz; \"off\": none";
    insecure: read_number, show_plain, "Listen beyond loopback although there is no authentication yet";
    connections_max: read_number, show_plain, "Most connections";
    frame_bytes_max: read_bytes, show_bytes, "Longest frame taken";
    subscriptions_max: read_number, show_plain, "Most topics one connection subscribes to";
    topics_per_query_max: read_number, show_plain, "Most topics in one route query";
    brokers_max: read_number, show_plain, "Most brokers, slaves counted";
    topics_per_broker_max: read_number, show_plain, "Most topics of one broker";
    expiry: read_duration, show_duration, "A broker silent for so long is dropped";
    handshake_timeout: read_duration, show_duration, "The greeting must come within";
    frame_timeout: read_duration, show_duration, "The rest of a frame must come within";
    idle_timeout: read_duration, show_duration, "A connection silent for so long is closed";
    write_timeout: read_duration, show_duration, "A peer that takes nothing for so long is closed";
}

impl Key {
    /// As a flag, without the dashes.
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// As an environment variable.
    pub fn variable(&self) -> String {
        format!("{ENVIRONMENT_PREFIX}{}", self.name.to_uppercase())
    }
}

/// Why settings cannot be used. The text names the place and what is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {fault}")]
pub struct SettingsError {
    place: String,
    fault: String,
}

fn fault<T>(place: impl Into<String>, fault: impl Into<String>) -> Result<T, SettingsError> {
    Err(SettingsError { place: place.into(), fault: fault.into() })
}

/// Settings in force, and where each came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// In force.
    pub config: NamesrvConfig,
    /// As [`KEYS`].
    sources: Vec<String>,
}

impl Default for Settings {
    fn default() -> Settings {
        let sources = vec!["default".to_owned(); KEYS.len()];
        Settings { config: NamesrvConfig::default(), sources }
    }
}

impl Settings {
    /// Takes over the settings of a TOML file.
    pub fn file(&mut self, path: &str, text: &str) -> Result<(), SettingsError> {
        let table: toml::Table = match text.parse() {
            Ok(table) => table,
            Err(error) => return fault(path, format!("this is no TOML: {error}")),
        };
        for (name, value) in table {
            let value = match value {
                toml::Value::String(text) => text,
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Boolean(truth) => truth.to_string(),
                other => {
                    let kind = other.type_str();
                    return fault(path, format!("{name}: a {kind} is no value for a setting"));
                }
            };
            self.set(&name, &value, path, path)?;
        }
        Ok(())
    }

    /// Takes over the environment.
    pub fn environment(
        &mut self,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<(), SettingsError> {
        for (variable, value) in variables {
            if let Some(name) = variable.strip_prefix(ENVIRONMENT_PREFIX) {
                self.set(&name.to_lowercase(), &value, "environment", &variable)?;
            }
        }
        Ok(())
    }

    /// Takes over a flag.
    pub fn flag(&mut self, key: &Key, value: &str) -> Result<(), SettingsError> {
        self.set(key.name, value, "flag", &format!("--{}", key.flag()))
    }

    fn set(
        &mut self,
        name: &str,
        value: &str,
        source: &str,
        place: &str,
    ) -> Result<(), SettingsError> {
        let Some(at) = KEYS.iter().position(|key| key.name == name) else {
            let near = KEYS.iter().map(|key| key.name).min_by_key(|key| distance(key, name));
            let near = near.filter(|key| distance(key, name) <= 1 + name.len() / 3);
            let hint = near.map_or_else(String::new, |key| format!(": did you mean {key:?}?"));
            return fault(place, format!("there is no setting {name:?}{hint}"));
        };
        match (KEYS[at].set)(&mut self.config, value) {
            Ok(()) => self.sources[at] = source.to_owned(),
            Err(what) => return fault(place, format!("{name} = {value:?}: {what}")),
        }
        Ok(())
    }

    /// A TOML file that says the same, with where each setting came from.
    pub fn print(&self) -> String {
        let mut text = String::new();
        for (key, source) in KEYS.iter().zip(&self.sources) {
            let line = format!("{} = {}", key.name, (key.show)(&self.config));
            // Writing to a String does not fail.
            let _ = writeln!(text, "{line:<44} # {source}: {}", key.help);
        }
        text
    }
}

fn read_text(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 255 {
        return Err("1 to 255 characters are needed".to_owned());
    }
    Ok(text.to_owned())
}

fn read_number<T: std::str::FromStr>(text: &str) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    text.trim().parse().map_err(|error: T::Err| error.to_string())
}

fn read_optional<T: std::str::FromStr>(text: &str) -> Result<Option<T>, String>
where
    T::Err: std::fmt::Display,
{
    if matches!(text, "" | "off") { Ok(None) } else { read_number(text).map(Some) }
}

fn read_bytes(text: &str) -> Result<u32, String> {
    const UNITS: &[(&str, u64)] = &[("B", 1), ("", 1), ("KiB", 1 << 10), ("MiB", 1 << 20)];
    let bytes = read_unit(text, UNITS)?;
    u32::try_from(bytes).map_err(|_| "at most 4095 MiB are possible".to_owned())
}

fn read_duration(text: &str) -> Result<Duration, String> {
    const UNITS: &[(&str, u64)] =
        &[("ms", 1), ("s", 1_000), ("m", 60_000), ("min", 60_000), ("h", 3_600_000)];
    match read_unit(text, UNITS)? {
        0 => Err("more than 0 is needed".to_owned()),
        ms => Ok(Duration::from_millis(ms)),
    }
}

fn read_unit(text: &str, units: &[(&str, u64)]) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = (&text[..split], text[split..].trim());
    let number: u64 = number.parse().map_err(|_| "a number is missing".to_owned())?;
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        let known: Vec<_> = units.iter().map(|(name, _)| *name).filter(|n| !n.is_empty()).collect();
        return Err(format!("a unit is needed: {}", known.join(", ")));
    };
    number.checked_mul(*factor).ok_or_else(|| "that is too much".to_owned())
}

fn show_text(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn show_plain(value: &impl ToString) -> String {
    value.to_string()
}

fn show_quoted(value: &impl ToString) -> String {
    show_text(&value.to_string())
}

fn show_optional<T: ToString>(value: &Option<T>) -> String {
    show_text(&value.as_ref().map_or_else(|| "off".to_owned(), ToString::to_string))
}

fn show_bytes(bytes: &u32) -> String {
    match *bytes {
        bytes if bytes.is_multiple_of(1 << 20) => format!("\"{} MiB\"", bytes >> 20),
        bytes if bytes.is_multiple_of(1 << 10) => format!("\"{} KiB\"", bytes >> 10),
        bytes => format!("\"{bytes} B\""),
    }
}

fn show_duration(duration: &Duration) -> String {
    match duration.as_millis() {
        ms if ms.is_multiple_of(1_000) => format!("\"{} s\"", ms / 1_000),
        ms => format!("\"{ms} ms\""),
    }
}

/// Edits that make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_sources() {
        let mut settings = Settings::default();
        let file = "listen = \"127.0.0.1:1\"\nexpiry = \"2 s\"\nbrokers_max = 5\ninsecure = true";
        settings.file("a.toml", file).unwrap();
        let variables = [("RINGMQ_NAMESRV_LISTEN", "127.0.0.1:2"), ("RINGMQ_NAMESRV", "x:1")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        settings.environment(variables.into_iter()).unwrap();
        settings.flag(&KEYS[1], "127.0.0.1:3").unwrap();
        assert_eq!(settings.config.listen.port(), 3);
        assert_eq!(settings.config.expiry, Duration::from_secs(2));
        assert_eq!(settings.config.brokers_max, 5);
        assert!(settings.config.insecure);
        let text = settings.print();
        assert!(text.contains("# flag: Address to listen on"), "{text}");
        assert!(text.contains("# a.toml: A broker silent"), "{text}");
    }

    #[test]
    fn what_is_printed_reads_back_the_same() {
        let mut settings = Settings::default();
        settings.config.http_listen = Some(([127, 0, 0, 1], 80).into());
        settings.config.expiry = Duration::from_millis(1_500);
        let mut again = Settings::default();
        again.file("x", &settings.print()).unwrap();
        assert_eq!(again.config, settings.config);
    }

    #[test]
    fn faults_say_where_and_what() {
        let fault = |text: &str| Settings::default().file("a.toml", text).unwrap_err().to_string();
        assert_eq!(
            fault("conections_max = 3"),
            "a.toml: there is no setting \"conections_max\": did you mean \"connections_max\"?"
        );
        assert_eq!(fault("zzz = 3"), "a.toml: there is no setting \"zzz\"");
        assert!(fault("expiry = 3").contains("a unit is needed: ms, s, m, min, h"));
        assert!(fault("expiry = \"0 s\"").contains("more than 0"));
        assert!(fault("frame_bytes_max = \"9999999 MiB\"").contains("4095 MiB"));
        assert!(fault("listen = \"here\"").contains("listen = \"here\""));
        assert!(fault("listen = [1]").contains("array"));
        assert!(fault("listen").contains("no TOML"));
    }
}
