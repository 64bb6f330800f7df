//! HdrHistogram's files: the interval log (`.hlog`) and the percentile text (`.hgrm`).
//!
//! Other tools read both: HistogramLogAnalyzer, HistogramLogProcessor and the plotters of hdrhistogram.org.
//!
//! Invariants:
//! - an interval log holds every measured sample once: its intervals of a tag add up to the histogram of
//!   that direction's response, so repeats are merged without a percentile being averaged;
//! - latencies are in ns in an interval log (its maxima, which are for people, in ms), in ms in a `.hgrm`.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::serialization::interval_log::{
    IntervalLogIterator, IntervalLogWriterBuilder, LogEntry, Tag,
};
use hdrhistogram::serialization::{Deserializer, V2DeflateSerializer};

use crate::record::{Interval, Latencies};

const NS_PER_MS: f64 = 1e6;
/// Lines of a `.hgrm` for each halving of what is left to 100 %: what the other implementations write.
const LINES_PER_HALF: u32 = 5;

/// Writes the intervals of each tag, in order of time. `started_at_ms` is when the run's clock was 0.
pub fn write_log(
    path: &Path,
    started_at_ms: u64,
    comment: &str,
    tracks: &[(&str, &[Interval])],
) -> anyhow::Result<()> {
    let start = UNIX_EPOCH + Duration::from_millis(started_at_ms);
    let text = log(start, comment, tracks)?;
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn log(
    start: SystemTime,
    comment: &str,
    tracks: &[(&str, &[Interval])],
) -> anyhow::Result<Vec<u8>> {
    let mut rows: Vec<(u64, &str, &Interval)> = Vec::new();
    for (tag, intervals) in tracks {
        rows.extend(intervals.iter().map(|interval| (interval.second, *tag, interval)));
    }
    rows.sort_by_key(|(second, ..)| *second);
    let (mut text, mut serializer) = (Vec::new(), V2DeflateSerializer::new());
    let mut writer = IntervalLogWriterBuilder::new()
        .add_comment(&format!("[{comment}]"))
        .add_comment("[Histogram log format version 1.3]")
        .with_start_time(start)
        .with_base_time(start)
        .with_max_value_divisor(NS_PER_MS)
        .begin_log_with(&mut text, &mut serializer)?;
    writer.write_comment(
        "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"",
    )?;
    for (second, tag, interval) in rows {
        let latencies: Latencies = [interval.response.clone()].into_iter().collect();
        let tag = Tag::new(tag).context("a tag has no comma and no space")?;
        let (at, length) = (Duration::from_secs(second), Duration::from_secs(1));
        writer
            .write_histogram(latencies.histogram(), at, length, Some(tag))
            .map_err(|error| anyhow!("writing an interval: {error}"))?;
    }
    drop(writer);
    Ok(text)
}

/// Reads the intervals of an interval log, each with its tag.
pub fn read_log(path: &Path) -> anyhow::Result<Vec<(String, Interval)>> {
    let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    parse_log(&text).with_context(|| format!("reading {}", path.display()))
}

fn parse_log(text: &[u8]) -> anyhow::Result<Vec<(String, Interval)>> {
    let mut intervals = Vec::new();
    for entry in IntervalLogIterator::new(text) {
        let entry = entry.map_err(|error| anyhow!("this is no interval log: {error:?}"))?;
        let LogEntry::Interval(interval) = entry else { continue };
        let bytes = STANDARD.decode(interval.encoded_histogram()).context("decoding base64")?;
        let histogram = Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .map_err(|error| anyhow!("decoding a histogram: {error}"))?;
        let mut latencies = Latencies::default();
        latencies.add_histogram(&histogram);
        let tag = interval.tag().map_or_else(String::new, |tag| tag.as_str().to_owned());
        let second = interval.start_timestamp().as_secs();
        intervals.push((tag, Interval { second, response: latencies.cells() }));
    }
    Ok(intervals)
}

/// Writes the percentiles of a histogram as text, values in ms.
pub fn write_percentiles(path: &Path, latencies: &Latencies) -> anyhow::Result<()> {
    fs::write(path, percentiles(latencies)).with_context(|| format!("writing {}", path.display()))
}

fn percentiles(latencies: &Latencies) -> Vec<u8> {
    const WRITES: &str = "a vector takes all";
    let histogram = latencies.histogram();
    let mut text = Vec::new();
    let head = ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"];
    writeln!(text, "{:>12} {:>14} {:>10} {:>14}\n", head[0], head[1], head[2], head[3])
        .expect(WRITES);
    let mut total = 0;
    for step in histogram.iter_quantiles(LINES_PER_HALF) {
        total += step.count_since_last_iteration();
        let (value, quantile) =
            (step.value_iterated_to() as f64 / NS_PER_MS, step.quantile_iterated_to());
        write!(text, "{value:>12.3} {quantile:>2.12} {total:>10}").expect(WRITES);
        match quantile < 1.0 {
            true => writeln!(text, " {:>14.2}", 1.0 / (1.0 - quantile)).expect(WRITES),
            false => writeln!(text).expect(WRITES),
        }
    }
    let ms = |ns: f64| ns / NS_PER_MS;
    let (mean, deviation) = (ms(histogram.mean()), ms(histogram.stdev()));
    writeln!(text, "#[Mean    = {mean:>12.3}, StdDeviation   = {deviation:>12.3}]").expect(WRITES);
    let (max, count) = (ms(histogram.max() as f64), histogram.len());
    writeln!(text, "#[Max     = {max:>12.3}, Total count    = {count:>12}]").expect(WRITES);
    let (buckets, cells) = (histogram.buckets(), 2 * 10u32.pow(u32::from(histogram.sigfig())));
    let cells = cells.next_power_of_two();
    writeln!(text, "#[Buckets = {buckets:>12}, SubBuckets     = {cells:>12}]").expect(WRITES);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(second: u64, from_ns: u64, samples: u64) -> Interval {
        let mut latencies = Latencies::default();
        for at in 0..samples {
            latencies.add(from_ns + at * 777, 1 + at % 3);
        }
        Interval { second, response: latencies.cells() }
    }

    #[test]
    fn an_interval_log_comes_back_as_it_was() {
        let produce = [interval(0, 90_000, 500), interval(1, 100_000, 700)];
        let receive = [interval(1, 5_000_000, 300)];
        let start = UNIX_EPOCH + Duration::from_millis(1_790_000_000_250);
        let tracks: [(&str, &[Interval]); 2] = [("produce", &produce), ("receive", &receive)];
        let text = log(start, "a run", &tracks).unwrap();
        let shown = String::from_utf8(text.clone()).unwrap();
        assert!(shown.starts_with("#[a run]\n#[Histogram log format version 1.3]\n"), "{shown}");
        assert!(shown.contains("#[StartTime: 1790000000.250"), "{shown}");
        assert!(shown.contains("\nTag=receive,1.000,1.000,5."), "{shown}");
        let read = parse_log(&text).unwrap();
        let of = |tag: &str| -> Vec<Interval> {
            read.iter().filter(|(of, _)| of == tag).map(|(_, i)| i.clone()).collect()
        };
        assert_eq!(of("produce"), produce);
        assert_eq!(of("receive"), receive);
        let seconds: Vec<u64> = read.iter().map(|(_, interval)| interval.second).collect();
        assert!(seconds.is_sorted(), "{seconds:?}");
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let text = b"Tag=produce,0.000,1.000,2.0,bm9uc2Vuc2U=\n";
        assert!(parse_log(text).is_err());
    }

    #[test]
    fn percentiles_are_written_as_the_plotters_want_them() {
        let mut latencies = Latencies::default();
        for at in 1..=10_000u64 {
            latencies.add(at * 1_000, 1);
        }
        let text = String::from_utf8(percentiles(&latencies)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let head: Vec<&str> = lines[0].split_whitespace().collect();
        assert_eq!(head, ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]);
        let rows: Vec<Vec<f64>> = lines[2..]
            .iter()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().map(|word| word.parse().unwrap()).collect())
            .collect();
        assert!(rows.is_sorted_by(|a, b| a[0] <= b[0] && a[1] <= b[1] && a[2] <= b[2]), "{text}");
        let median = rows.iter().find(|row| row[1] == 0.5).unwrap();
        // A cell there stands for two values.
        assert!((median[0] - 5.0).abs() < 0.01 && (median[2] - 5_000.0) < 3.0, "{median:?}");
        let last = rows.last().unwrap();
        assert_eq!((last[1], last[2], last.len()), (1.0, 10_000.0, 3), "{text}");
        assert!(text.ends_with("SubBuckets     =         2048]\n"), "{text}");
    }
}
