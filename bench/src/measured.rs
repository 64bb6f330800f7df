//! From what a run recorded to its outcome: one way for every verb.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use serde::Serialize;

use crate::args::FlushMode;
use crate::cpu::Cpu;
use crate::environment::Environment;
use crate::limits::{RawSamples, kept};
use crate::outcome::{Outcome, Track};
use crate::report::{Correctness, Figures, Raw, Report, SCHEMA};
use crate::run::Run;
use crate::schedule::Punctuality;
use crate::shares::shares;

/// What is measured of the receiving side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receiving {
    /// Nothing: what is read is read for the checker.
    Nothing,
    /// The rate over so many ns; due times are another process's.
    Rate(u64),
    /// Rate and latency from when messages were due.
    Latency,
}

/// A run that is over.
#[derive(Debug)]
pub struct Measured {
    /// Everything that was recorded.
    pub run: Arc<Run>,
    /// How long messages were sent; none: no message was sent.
    pub sent_ns: Option<u64>,
    /// How the schedule was kept, in an open loop.
    pub punctuality: Option<Punctuality>,
    /// What is told of the receiving side.
    pub receiving: Receiving,
    /// Whether what is stored was read.
    pub checked: bool,
    /// Raw figures of the same minutes.
    pub raw: Option<RawSamples>,
    /// CPU of the same seconds.
    pub cpu: Option<Cpu>,
}

/// What stands in a report beside the figures.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// The verb.
    pub verb: &'a str,
    /// The directory whose disk is named.
    pub disk: &'a Path,
    /// Durability that was asked for.
    pub flush: Option<FlushMode>,
    /// Whether many requests were in flight as fast as they went.
    pub queued: bool,
    /// Where results go: limits that lie there are held against.
    pub out: Option<&'a Path>,
}

impl Measured {
    /// The outcome of a run with `parameters`.
    pub fn outcome(
        self,
        frame: &Frame<'_>,
        parameters: &impl Serialize,
    ) -> anyhow::Result<Outcome> {
        let run = &self.run;
        let mut tracks = Vec::new();
        let produce = self.sent_ns.map(|ns| {
            let mut recorder = run.produced();
            tracks.push(Track::of("produce", &mut recorder, true));
            Figures::of(&mut recorder, ns)
        });
        let receive = (self.receiving != Receiving::Nothing).then(|| {
            let mut recorder = run.received();
            let ns = match self.receiving {
                Receiving::Rate(ns) => ns,
                _ => recorder.measured_ns(),
            };
            let mut figures = Figures::of(&mut recorder, ns);
            figures.service = None;
            match self.receiving {
                Receiving::Latency => tracks.push(Track::of("receive", &mut recorder, false)),
                _ => figures.without_latency(),
            }
            figures
        });
        let mut environment = Environment::read(frame.disk);
        environment.started_at_ms = run.started_at_ms;
        let limits = self.limits(frame, &environment);
        let shares = limits.as_ref().map(|used| {
            shares(&used.limits, produce.as_ref(), receive.as_ref(), frame.flush, frame.queued)
        });
        let raw = self.raw.as_ref().map(|raw| {
            let service = &run.produced().service;
            Raw::of(&raw.durable_write, &raw.on_two_cpus, &raw.on_one_cpu, service)
        });
        let report = Report {
            schema: SCHEMA,
            verb: frame.verb.to_owned(),
            parameters: serde_json::to_value(parameters).context("writing the parameters")?,
            environment,
            correctness: Correctness::of(run, self.checked),
            measured_from_ms: run.warm_up_ns() as f64 / 1e6,
            produce,
            receive,
            generator: self.punctuality.map(Into::into),
            raw,
            cpu: self.cpu,
            limits,
            shares: shares.unwrap_or_default(),
            sweep: None,
            backlog: None,
        };
        Ok(Outcome { report, tracks })
    }

    fn limits(&self, frame: &Frame<'_>, here: &Environment) -> Option<kept::Used> {
        if let Some(raw) = &self.raw {
            return Some(kept::Used::interleaved(raw.limits()));
        }
        let cache = kept::cache_directory();
        let directories: Vec<&Path> = frame.out.into_iter().chain(cache.as_deref()).collect();
        kept::find(here, &directories)
    }
}
