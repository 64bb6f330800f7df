//! Settings of groups.

use ringmq_schema::admin as wire;
use ringmq_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
use ringmq_schema::limits::ATTEMPTS_MAX_DEFAULT;
use std::time::Duration;

/// How a group consumes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupSettings {
    /// Off: its members get no messages, and can still commit.
    pub consume_enabled: bool,
    /// A message that failed so often goes to the dead letters. Default 16.
    pub max_attempts: u16,
    /// How long a message waits after each failed attempt.
    pub retry: RetryPauses,
}

impl Default for GroupSettings {
    fn default() -> GroupSettings {
        GroupSettings {
            consume_enabled: true,
            max_attempts: ATTEMPTS_MAX_DEFAULT,
            retry: RetryPauses::Default,
        }
    }
}

/// How long a message waits after each failed attempt.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RetryPauses {
    /// 10 s, 30 s, 1 m, 2 m, ... 10 m, 20 m, 30 m, 1 h, 2 h.
    #[default]
    Default,
    /// One after another; the last holds for all further attempts.
    List(Vec<Duration>),
    /// Each longer than the one before.
    Growing {
        /// After the first attempt.
        first: Duration,
        /// Of the next to the one before: 200 doubles it.
        factor_percent: u32,
        /// It grows no longer than this.
        longest: Duration,
    },
}

/// A group that is to be made or changed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct GroupSpec {
    pub(super) name: String,
    /// `None`: whatever it has, or those by default.
    pub(super) settings: Option<GroupSettings>,
}

impl GroupSpec {
    /// A group of this name.
    pub fn new(name: impl Into<String>) -> GroupSpec {
        GroupSpec { name: name.into(), settings: None }
    }

    /// With all of these settings.
    pub fn settings(mut self, settings: GroupSettings) -> GroupSpec {
        self.settings = Some(settings);
        self
    }

    /// Switches consumption on or off.
    pub fn consume_enabled(mut self, enabled: bool) -> GroupSpec {
        self.own().consume_enabled = enabled;
        self
    }

    /// How often a message is delivered before it goes to the dead letters.
    pub fn max_attempts(mut self, attempts: u16) -> GroupSpec {
        self.own().max_attempts = attempts;
        self
    }

    /// How long a message waits after each failed attempt; the last holds for all further ones.
    pub fn retry_pauses(mut self, pauses: impl IntoIterator<Item = Duration>) -> GroupSpec {
        self.own().retry = RetryPauses::List(pauses.into_iter().collect());
        self
    }

    /// The same as pauses that grow by a factor up to the longest.
    pub fn retry_growing(
        mut self,
        first: Duration,
        factor_percent: u32,
        longest: Duration,
    ) -> GroupSpec {
        self.own().retry = RetryPauses::Growing { first, factor_percent, longest };
        self
    }

    fn own(&mut self) -> &mut GroupSettings {
        self.settings.get_or_insert_default()
    }
}

impl<T: Into<String>> From<T> for GroupSpec {
    fn from(name: T) -> GroupSpec {
        GroupSpec::new(name)
    }
}

impl GroupSettings {
    pub(super) fn read(table: Option<wire::GroupSettings<'_>>) -> GroupSettings {
        let Some(table) = table else { return GroupSettings::default() };
        let pauses = table.retry_delays_ms().unwrap_or_default();
        let retry = match (table.retry_first_ms(), pauses.is_empty()) {
            (0, true) => RetryPauses::Default,
            (0, false) => RetryPauses::List(pauses.iter().map(Duration::from_millis).collect()),
            (first_ms, _) => RetryPauses::Growing {
                first: Duration::from_millis(first_ms),
                factor_percent: table.retry_factor_percent(),
                longest: Duration::from_millis(table.retry_longest_ms()),
            },
        };
        let (consume_enabled, max_attempts) = (table.consume_enabled(), table.max_attempts());
        GroupSettings { consume_enabled, max_attempts, retry }
    }

    pub(super) fn write(
        &self,
        fbb: &mut FlatBufferBuilder<'static>,
    ) -> WIPOffset<wire::GroupSettings<'static>> {
        let mut args = wire::GroupSettingsArgs {
            consume_enabled: self.consume_enabled,
            max_attempts: self.max_attempts,
            ..Default::default()
        };
        // Less than 1 ms would be none, which the brokers refuse.
        let ms = |pause: &Duration| u64::try_from(pause.as_millis()).unwrap_or(u64::MAX).max(1);
        match &self.retry {
            RetryPauses::Default => {}
            RetryPauses::List(pauses) => {
                let pauses: Vec<u64> = pauses.iter().map(ms).collect();
                args.retry_delays_ms = Some(fbb.create_vector(&pauses));
            }
            RetryPauses::Growing { first, factor_percent, longest } => {
                args.retry_first_ms = ms(first);
                args.retry_factor_percent = *factor_percent;
                args.retry_longest_ms = ms(longest);
            }
        }
        wire::GroupSettings::create(fbb, &args)
    }
}
