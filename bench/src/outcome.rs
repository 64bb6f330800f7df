//! A run's result as a whole: the report, and the samples behind it, as files in one directory.
//!
//! ```text
//! run.json   run.hlog   produce-response.hgrm   produce-service.hgrm   receive-response.hgrm   report.html
//! ```
//!
//! Invariants:
//! - what lies in the directory afterwards is of one run: files of an earlier one that this one has not are
//!   removed;
//! - `run.hlog` holds every sample of the response times in `run.json`.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, bail};

use crate::hlog;
use crate::html;
use crate::record::{Interval, Latencies, Recorder};
use crate::report::{Figures, Report, write_json};

/// The report's name.
pub const RUN_FILE: &str = "run.json";
/// The interval log's name.
pub const LOG_FILE: &str = "run.hlog";
/// The page's name.
pub const PAGE_FILE: &str = "report.html";

/// The directions that have latencies, as they are called in files.
pub const DIRECTIONS: [&str; 2] = ["produce", "receive"];

/// The samples of one direction.
#[derive(Debug, Clone)]
pub struct Track {
    /// One of [`DIRECTIONS`].
    pub direction: &'static str,
    /// From due to done.
    pub response: Latencies,
    /// From sent to done, where that was measured.
    pub service: Option<Latencies>,
    /// The response's samples second by second.
    pub intervals: Vec<Interval>,
}

impl Track {
    /// Of what was recorded.
    pub fn of(direction: &'static str, recorder: &mut Recorder, with_service: bool) -> Track {
        Track {
            direction,
            response: recorder.response.clone(),
            service: with_service.then(|| recorder.service.clone()),
            intervals: recorder.intervals().to_vec(),
        }
    }
}

/// A report and its samples.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What was found.
    pub report: Report,
    /// The samples; empty where no latency was measured.
    pub tracks: Vec<Track>,
}

impl Outcome {
    /// Writes all files.
    pub fn write(&self, directory: &Path) -> anyhow::Result<()> {
        write_json(directory, RUN_FILE, &self.report)?;
        let keep = |name: &str, present: bool| match present {
            true => Ok(()),
            false => match fs::remove_file(directory.join(name)) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error)
                    .with_context(|| format!("removing an older {name} from the directory")),
                _ => Ok(()),
            },
        };
        keep(LOG_FILE, !self.tracks.is_empty())?;
        if !self.tracks.is_empty() {
            let tracks: Vec<(&str, &[Interval])> =
                self.tracks.iter().map(|t| (t.direction, t.intervals.as_slice())).collect();
            let comment = format!("ringmq-bench {}: response times in ns", self.report.verb);
            let started_at_ms = self.report.environment.started_at_ms;
            hlog::write_log(&directory.join(LOG_FILE), started_at_ms, &comment, &tracks)?;
        }
        for direction in DIRECTIONS {
            let track = self.tracks.iter().find(|track| track.direction == direction);
            let response = track.map(|track| &track.response);
            let service = track.and_then(|track| track.service.as_ref());
            for (kind, latencies) in [("response", response), ("service", service)] {
                let name = format!("{direction}-{kind}.hgrm");
                keep(&name, latencies.is_some())?;
                if let Some(latencies) = latencies {
                    hlog::write_percentiles(&directory.join(name), latencies)?;
                }
            }
        }
        let page = html::run_page(self)?;
        fs::write(directory.join(PAGE_FILE), page).context("writing the page of the report")
    }

    /// Reads a result back: a directory, or the `run.json` in it. The service times are in no file.
    pub fn read(path: &Path) -> anyhow::Result<Outcome> {
        let file = if path.is_dir() { path.join(RUN_FILE) } else { path.to_owned() };
        let text = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        let report: Report = serde_json::from_slice(&text)
            .with_context(|| format!("{} is no run.json of this version", file.display()))?;
        let has_latencies =
            |figures: Option<&Figures>| figures.is_some_and(|f| f.response.is_some());
        let wanted = [
            ("produce", has_latencies(report.produce.as_ref())),
            ("receive", has_latencies(report.receive.as_ref())),
        ];
        let mut tracks = Vec::new();
        if wanted.iter().any(|(_, wanted)| *wanted) {
            let log = file.with_file_name(LOG_FILE);
            let mut intervals = hlog::read_log(&log)
                .context("the histograms lie beside run.json; both files are needed")?;
            for (direction, _) in wanted.into_iter().filter(|(_, wanted)| *wanted) {
                let ours = intervals.extract_if(.., |(tag, _)| tag == direction);
                let intervals: Vec<Interval> = ours.map(|(_, interval)| interval).collect();
                let response: Latencies = intervals.iter().map(|i| i.response.clone()).collect();
                tracks.push(Track { direction, response, service: None, intervals });
            }
        }
        let outcome = Outcome { report, tracks };
        outcome.check().with_context(|| format!("{} and {LOG_FILE}", file.display()))?;
        Ok(outcome)
    }

    /// Whether samples and report are of one run.
    fn check(&self) -> anyhow::Result<()> {
        for track in &self.tracks {
            let figures = match track.direction {
                "produce" => self.report.produce.as_ref(),
                _ => self.report.receive.as_ref(),
            };
            let told = figures.and_then(|f| f.response.as_ref()).map_or(0, |r| r.samples);
            if told != track.response.count() {
                let there = track.response.count();
                bail!("they are of different runs: {told} samples in one, {there} in the other");
            }
        }
        Ok(())
    }
}
