//! What latency is good enough: `p99.9<10ms,p50<=1ms`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use crate::plot;
use crate::record::Latencies;

/// Bounds that must all hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Slo(Vec<Bound>);

#[derive(Debug, Clone, PartialEq)]
struct Bound {
    name: String,
    percentile: f64,
    may_equal: bool,
    limit: Duration,
}

impl Slo {
    /// The bounds that do not hold, in words; empty when all do. Without samples none holds.
    pub fn misses(&self, latencies: &Latencies) -> Vec<String> {
        let missed = self.0.iter().filter(|bound| !bound.holds(latencies));
        missed.map(|bound| bound.told(latencies)).collect()
    }
}

impl Slo {
    /// The bounds that rest on fewer than ten of `samples`, in words: such a step says little of them.
    pub fn thin(&self, samples: u64) -> Option<String> {
        const BEYOND_MIN: f64 = 10.0;
        let thin = |bound: &&Bound| {
            // A maximum is one sample however many there are.
            let beyond = samples as f64 * (1.0 - bound.percentile / 100.0);
            bound.percentile < 100.0 && beyond < BEYOND_MIN
        };
        let names: Vec<&str> =
            self.0.iter().filter(thin).map(|bound| bound.name.as_str()).collect();
        (!names.is_empty()).then(|| {
            let names = names.join(", ");
            format!(
                "{samples} messages in a step at the answer: fewer than 10 lie beyond {names}; use \
                 a longer --step-duration"
            )
        })
    }
}

impl Bound {
    fn holds(&self, latencies: &Latencies) -> bool {
        let measured = u128::from(latencies.at_ns(self.percentile));
        let limit = self.limit.as_nanos();
        latencies.count() > 0 && (measured < limit || self.may_equal && measured == limit)
    }

    fn told(&self, latencies: &Latencies) -> String {
        match latencies.count() {
            0 => format!("{self}: nothing was measured"),
            _ => format!("{} is {}", self.name, plot::duration(latencies.at_ns(self.percentile))),
        }
    }
}

impl FromStr for Slo {
    type Err = String;

    fn from_str(text: &str) -> Result<Slo, String> {
        let bounds: Result<Vec<Bound>, String> = text.split(',').map(bound).collect();
        bounds.map(Slo)
    }
}

fn bound(text: &str) -> Result<Bound, String> {
    let shape = || format!("\"{text}\" is no bound: say one as p99.9<10ms, p50<=1ms or max<1s");
    let (name, rest) = text.trim().split_once('<').ok_or_else(shape)?;
    let (may_equal, limit) = match rest.strip_prefix('=') {
        Some(limit) => (true, limit),
        None => (false, rest),
    };
    let name = name.trim();
    let percentile = match name.strip_prefix('p') {
        _ if name == "max" => 100.0,
        Some(number) => number.parse().map_err(|_| shape())?,
        None => return Err(shape()),
    };
    if !(percentile > 0.0 && percentile <= 100.0) {
        return Err(format!("{name}: a percentile is above 0 and at most 100"));
    }
    let limit = limit.trim();
    if limit.ends_with(|c: char| c.is_ascii_digit()) {
        return Err(format!("{limit} has no unit: use us, ms or s, as in 10ms"));
    }
    let limit = latency(limit)?;
    if limit.is_zero() {
        return Err(format!("\"{text}\": no latency is below zero"));
    }
    Ok(Bound { name: name.to_owned(), percentile, may_equal, limit })
}

/// As [`crate::args::duration`], and in microseconds too.
fn latency(text: &str) -> Result<Duration, String> {
    match text.strip_suffix("us").or_else(|| text.strip_suffix("µs")) {
        Some(number) => {
            let us: f64 =
                number.trim().parse().map_err(|_| format!("\"{text}\" is no duration"))?;
            Duration::try_from_secs_f64(us / 1e6).map_err(|error| error.to_string())
        }
        None => crate::args::duration(text),
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.may_equal { "<=" } else { "<" };
        write!(f, "{}{sign}{:?}", self.name, self.limit)
    }
}

impl fmt::Display for Slo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bounds: Vec<String> = self.0.iter().map(Bound::to_string).collect();
        f.write_str(&bounds.join(","))
    }
}

impl Serialize for Slo {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slo(text: &str) -> Slo {
        text.parse().unwrap()
    }

    #[test]
    fn bounds_are_read_and_written() {
        assert_eq!(slo("p99.9<10ms").to_string(), "p99.9<10ms");
        assert_eq!(slo(" p50 <= 500us , max < 1s ").to_string(), "p50<=500µs,max<1s");
        for wrong in [
            "", "p99", "p99>10ms", "q99<10ms", "p101<1ms", "p0<1ms", "p99<10", "p99<ten", "p<1ms",
            "p99<0ms", "p99<1ms,", "p99==1ms",
        ] {
            assert!(wrong.parse::<Slo>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn all_bounds_must_hold() {
        let mut latencies = Latencies::default();
        assert_eq!(slo("p50<1s").misses(&latencies), ["p50<1s: nothing was measured"]);
        latencies.add(1_000_000, 990);
        latencies.add(20_000_000, 10);
        assert!(slo("p50<2ms,p99<2ms,max<30ms").misses(&latencies).is_empty());
        let missed = slo("p50<2ms,p99.9<10ms,max<15ms").misses(&latencies);
        assert_eq!(missed, ["p99.9 is 20.0 ms", "max is 20.0 ms"]);
    }

    #[test]
    fn rare_percentiles_want_many_samples() {
        let slo = slo("p50<1ms,p99.9<10ms,max<1s");
        assert!(slo.thin(9_000).is_some_and(|text| text.contains("beyond p99.9;")));
        assert!(slo.thin(10).is_some_and(|text| text.contains("beyond p50, p99.9;")));
        assert_eq!(slo.thin(20_000), None);
    }

    #[test]
    fn less_is_not_equal() {
        let mut latencies = Latencies::default();
        // Below 2048 ns the histogram is exact.
        latencies.add(1_500, 1);
        assert!(slo("p50<=1.5us").misses(&latencies).is_empty());
        assert_eq!(slo("p50<1.5us").misses(&latencies).len(), 1);
    }
}
