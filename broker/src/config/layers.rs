//! Where settings come from: defaults < TOML file < environment `RINGMQ_*` < flags.
//!
//! Invariant: a key that nobody knows is refused, wherever it stands, with the nearest one that exists.

use super::{BrokerConfig, KEYS, Key};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Built in.
    Default,
    /// A file.
    File(PathBuf),
    /// A variable of the environment.
    Environment(String),
    /// The command line.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File(path) => write!(f, "{}", path.display()),
            Source::Environment(name) => write!(f, "environment {name}"),
            Source::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// Why settings are refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("the configuration {path} is no TOML: {reason}")]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// A key that nobody knows.
    #[error("{at}: there is no setting {key:?}{}", suggestion.map(|s| format!(", did you mean {s:?}?")).unwrap_or_default())]
    Unknown {
        /// Where it stands.
        at: Source,
        /// What it is called there.
        key: String,
        /// The nearest that exists.
        suggestion: Option<&'static str>,
    },
    /// A value that cannot be read.
    #[error("{at}: {key}: {reason}")]
    Value {
        /// Where it stands.
        at: Source,
        /// The setting.
        key: &'static str,
        /// What was expected.
        reason: String,
    },
    /// A value out of bounds, or two that contradict each other.
    #[error("{key}: {reason}")]
    Refused {
        /// The setting.
        key: &'static str,
        /// What is allowed.
        reason: String,
    },
}

/// Values by key, the strongest source last.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    values: BTreeMap<&'static str, (String, Source)>,
}

impl Layers {
    /// Takes the settings of a file.
    pub fn file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        let table: toml::Table = toml::from_str(&text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        for (name, value) in table {
            self.put(&name, text_of(&value), Source::File(path.to_owned()))?;
        }
        Ok(())
    }

    /// Takes the settings of the environment: every variable that starts with `RINGMQ_`.
    pub fn environment(
        &mut self,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<(), ConfigError> {
        for (name, value) in variables {
            let Some(key) = name.strip_prefix("RINGMQ_") else { continue };
            // Names of the tools around the broker, not of its settings.
            if matches!(key, "CONFIG" | "LOG") {
                continue;
            }
            self.put(&key.to_ascii_lowercase(), value, Source::Environment(name))?;
        }
        Ok(())
    }

    /// Takes the settings of the command line, as [`command`] reads it.
    pub fn flags(&mut self, matches: &clap::ArgMatches) -> Result<(), ConfigError> {
        for key in KEYS {
            let given =
                matches.value_source(key.name) == Some(clap::parser::ValueSource::CommandLine);
            if let Some(value) = matches.get_one::<String>(key.name).filter(|_| given) {
                self.put(key.name, value.clone(), Source::Flag(flag(key)))?;
            }
        }
        Ok(())
    }

    fn put(&mut self, name: &str, value: String, source: Source) -> Result<(), ConfigError> {
        let wanted = name.replace('-', "_");
        let Some(key) = KEYS.iter().find(|key| key.name == wanted) else {
            let suggestion = nearest(&wanted);
            return Err(ConfigError::Unknown { at: source, key: name.to_owned(), suggestion });
        };
        self.values.insert(key.name, (value, source));
        Ok(())
    }

    /// The settings in force, checked.
    pub fn resolve(&self) -> Result<BrokerConfig, ConfigError> {
        let mut config = BrokerConfig::default();
        for key in KEYS {
            let Some((value, source)) = self.values.get(key.name) else { continue };
            (key.set)(&mut config, value).map_err(|reason| ConfigError::Value {
                at: source.clone(),
                key: key.name,
                reason,
            })?;
        }
        config.check()?;
        Ok(config)
    }

    /// Where the value of a key comes from.
    pub fn source(&self, key: &str) -> Source {
        self.values.get(key).map_or(Source::Default, |(_, source)| source.clone())
    }
}

fn flag(key: &Key) -> String {
    format!("--{}", key.name.replace('_', "-"))
}

/// TOML's own types are as welcome as text.
fn text_of(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(items) => items.iter().map(text_of).collect::<Vec<_>>().join(";"),
        other => other.to_string(),
    }
}

/// The key that differs in the fewest letters, when it is near enough to be meant.
fn nearest(wanted: &str) -> Option<&'static str> {
    let near = KEYS.iter().map(|key| (distance(wanted, key.name), key.name)).min()?;
    (near.0 <= 1 + wanted.len() / 3).then_some(near.1)
}

/// Edits (insert, delete, replace) that turn `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// The command line of the broker.
pub fn command() -> clap::Command {
    let path = clap::Arg::new("config")
        .long("config")
        .short('c')
        .value_name("FILE")
        .env("RINGMQ_CONFIG")
        .value_parser(clap::value_parser!(PathBuf))
        .help("TOML file with settings");
    let print = clap::Arg::new("print_config")
        .long("print-config")
        .action(clap::ArgAction::SetTrue)
        .help("Print every setting in force and where it comes from, then exit");
    let check = clap::Arg::new("check_config")
        .long("check-config")
        .action(clap::ArgAction::SetTrue)
        .help("Check the settings, then exit");
    let defaults = BrokerConfig::default();
    let settings = KEYS.iter().map(|key| {
        let shown = (key.show)(&defaults);
        let shown = if shown.is_empty() { "none".to_owned() } else { shown };
        let argument = clap::Arg::new(key.name)
            .long(key.name.replace('_', "-"))
            .value_name("VALUE")
            .help(format!("{} [default: {shown}]", key.about.trim()));
        match shown.as_str() {
            "true" | "false" => argument.num_args(0..=1).default_missing_value("true"),
            _ => argument,
        }
    });
    clap::Command::new("ringmq-broker")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A RingMQ broker. Settings: flag > RINGMQ_NAME in the environment > file > default")
        .args([path, print, check])
        .args(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_beat_the_environment_which_beats_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("b.toml");
        std::fs::write(
            &file,
            "port = 1\nbroker = \"f\"\ncluster = \"f\"\nnamesrv = [\"a:1\", \"b:2\"]",
        )
        .unwrap();
        let mut layers = Layers::default();
        layers.file(&file).unwrap();
        let variables = [("RINGMQ_PORT", "2"), ("RINGMQ_BROKER", "e"), ("HOME", "x")];
        let variables = variables.map(|(k, v)| (k.to_owned(), v.to_owned()));
        layers.environment(variables.into_iter()).unwrap();
        let matches = command().get_matches_from(["b", "--port", "3", "--insecure"]);
        layers.flags(&matches).unwrap();
        let config = layers.resolve().unwrap();
        assert_eq!((config.port, config.broker.as_str(), config.cluster.as_str()), (3, "e", "f"));
        assert_eq!(config.namesrv, ["a:1", "b:2"]);
        assert!(config.insecure);
        assert_eq!(layers.source("port"), Source::Flag("--port".to_owned()));
        let shown = config.describe(&layers);
        assert!(
            shown.contains("environment RINGMQ_BROKER") && shown.contains("# default"),
            "{shown}"
        );
    }

    #[test]
    fn unknown_keys_are_refused_with_the_nearest() {
        let mut layers = Layers::default();
        let variable = ("RINGMQ_SEGMENT_BYTE".to_owned(), "1".to_owned());
        let error = layers.environment([variable].into_iter()).unwrap_err().to_string();
        assert!(error.contains("did you mean \"segment_bytes\""), "{error}");
        let error = layers.put("zzzzzz", String::new(), Source::Default).unwrap_err().to_string();
        assert!(!error.contains("did you mean"), "{error}");
    }

    #[test]
    fn a_bad_value_names_its_place() {
        let mut layers = Layers::default();
        layers.put("port", "many".to_owned(), Source::Flag("--port".to_owned())).unwrap();
        let error = layers.resolve().unwrap_err().to_string();
        assert!(error.contains("flag --port: port: \"many\""), "{error}");
    }
}
