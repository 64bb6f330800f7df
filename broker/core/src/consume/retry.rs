//! How a group consumes: its settings, and the pauses between the attempts of a message.
//!
//! Invariants:
//! - settings that are kept were checked: every pause is at least 1 ms and at most the longest delay, and there is
//!   at least one attempt.

use crate::peer::{GroupSettings, RetryPauses};
use ringmq_schema::admin;
use ringmq_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
use ringmq_schema::limits::{ATTEMPTS_MAX_DEFAULT, RETRY_DELAYS_MAX, RETRY_DELAYS_MS};

/// A pause that does not grow.
const FACTOR_PERCENT_MIN: u32 = 100;

impl Default for GroupSettings {
    fn default() -> GroupSettings {
        GroupSettings {
            consume_enabled: true,
            max_attempts: ATTEMPTS_MAX_DEFAULT,
            retry: RetryPauses::Default,
        }
    }
}

impl GroupSettings {
    /// What a request asks for; `Err` says what is wrong with it.
    pub(crate) fn read(
        table: Option<admin::GroupSettings<'_>>,
        delay_ms_max: u64,
    ) -> Result<GroupSettings, String> {
        let Some(table) = table else { return Ok(GroupSettings::default()) };
        let max_attempts = table.max_attempts();
        if max_attempts == 0 {
            return Err("a message is delivered at least once: 0 attempts are none".to_owned());
        }
        let pauses: Vec<u64> = table.retry_delays_ms().into_iter().flatten().collect();
        let retry = match (table.retry_first_ms(), pauses.is_empty()) {
            (0, true) => RetryPauses::Default,
            (0, false) => RetryPauses::List(pauses),
            (first_ms, true) => RetryPauses::Growing {
                first_ms,
                factor_percent: table.retry_factor_percent(),
                longest_ms: table.retry_longest_ms().max(first_ms),
            },
            (_, false) => {
                return Err("the pauses are a list or grow from a first one, not both".to_owned());
            }
        };
        check_pauses(&retry, delay_ms_max)?;
        Ok(GroupSettings { consume_enabled: table.consume_enabled(), max_attempts, retry })
    }

    /// As a table of an answer.
    pub(crate) fn write(
        &self,
        fbb: &mut FlatBufferBuilder<'static>,
    ) -> WIPOffset<admin::GroupSettings<'static>> {
        let mut args = admin::GroupSettingsArgs {
            consume_enabled: self.consume_enabled,
            max_attempts: self.max_attempts,
            ..Default::default()
        };
        match &self.retry {
            RetryPauses::Default => {}
            RetryPauses::List(pauses) => args.retry_delays_ms = Some(fbb.create_vector(pauses)),
            RetryPauses::Growing { first_ms, factor_percent, longest_ms } => {
                args.retry_first_ms = *first_ms;
                args.retry_factor_percent = *factor_percent;
                args.retry_longest_ms = *longest_ms;
            }
        }
        admin::GroupSettings::create(fbb, &args)
    }

    /// How long a message waits that failed for the `attempts`-th time, ms.
    pub(crate) fn pause_ms(&self, attempts: u16) -> u64 {
        let failed_before = usize::from(attempts.max(1)) - 1;
        let of = |pauses: &[u64]| pauses[failed_before.min(pauses.len() - 1)];
        match &self.retry {
            RetryPauses::Default => of(&RETRY_DELAYS_MS),
            RetryPauses::List(pauses) => of(pauses),
            RetryPauses::Growing { first_ms, factor_percent, longest_ms } => {
                let mut pause_ms = u128::from(*first_ms);
                for _ in 0..failed_before {
                    if pause_ms >= u128::from(*longest_ms) || *factor_percent <= 100 {
                        break;
                    }
                    // A short pause grows by something, too.
                    let grown = pause_ms * u128::from(*factor_percent) / 100;
                    pause_ms = grown.max(pause_ms + 1);
                }
                pause_ms.min(u128::from(*longest_ms)) as u64
            }
        }
    }
}

fn check_pauses(retry: &RetryPauses, longest_ms_max: u64) -> Result<(), String> {
    let check = |ms: u64| match ms == 0 || ms > longest_ms_max {
        true => Err(format!("a pause of {ms} ms, 1 to {longest_ms_max} ms are allowed")),
        false => Ok(()),
    };
    match retry {
        RetryPauses::Default => Ok(()),
        RetryPauses::List(pauses) if pauses.len() > RETRY_DELAYS_MAX => {
            Err(format!("{} pauses, at most {RETRY_DELAYS_MAX} are allowed", pauses.len()))
        }
        RetryPauses::List(pauses) => pauses.iter().try_for_each(|ms| check(*ms)),
        RetryPauses::Growing { factor_percent, .. } if *factor_percent < FACTOR_PERCENT_MIN => Err(
            format!("a factor of {factor_percent} %, at least {FACTOR_PERCENT_MIN} % is allowed"),
        ),
        RetryPauses::Growing { first_ms, longest_ms, .. } => {
            check(*first_ms)?;
            check(*longest_ms)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_pause_of_a_list_holds_for_all_further_attempts() {
        let settings = GroupSettings::default();
        let pauses: Vec<u64> =
            [0, 1, 2, 3, 15, 16, 17, u16::MAX].map(|n| settings.pause_ms(n)).into();
        let hours = 3_600_000;
        assert_eq!(
            pauses,
            [10_000, 10_000, 30_000, 60_000, hours, 2 * hours, 2 * hours, 2 * hours]
        );
        let retry = RetryPauses::List(vec![5, 7]);
        let settings = GroupSettings { retry, ..GroupSettings::default() };
        assert_eq!([1, 2, 3].map(|attempts| settings.pause_ms(attempts)), [5, 7, 7]);
    }

    #[test]
    fn growing_pauses_end_at_the_longest() {
        let growing = |factor_percent| GroupSettings {
            retry: RetryPauses::Growing { first_ms: 10, factor_percent, longest_ms: 70 },
            ..GroupSettings::default()
        };
        let doubled = growing(200);
        assert_eq!([1, 2, 3, 4, 5].map(|n| doubled.pause_ms(n)), [10, 20, 40, 70, 70]);
        assert_eq!(doubled.pause_ms(u16::MAX), 70);
        assert_eq!(growing(100).pause_ms(9), 10);
        assert_eq!(growing(101).pause_ms(3), 12);
    }
}
