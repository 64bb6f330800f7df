//! CPU that a run took: the generator's, the host's, and a broker's on this host.
//!
//! A thread looks at /proc once a second, so a saturated generator or a host that does something else
//! beside shows in the report. In units of cores: 1.5 is one core and a half. Elsewhere than on Linux
//! nothing is measured.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use crate::run::Run;

/// The kernel's unit of CPU times in /proc (USER_HZ), the same on every architecture that RingMQ runs on.
const TICKS_PER_SECOND: f64 = 100.0;
const EVERY: Duration = Duration::from_secs(1);

/// CPU of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the keys of run.json and say it")]
pub struct Cpu {
    pub host_cores: usize,
    pub generator_busy_cores_mean: f64,
    pub host_busy_cores_mean: f64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub broker_busy_cores_mean: Option<f64>,
    pub seconds: Vec<CpuSecond>,
}

/// CPU of one second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the keys of run.json and say it")]
pub struct CpuSecond {
    pub second: f64,
    pub generator_busy_cores: f64,
    pub host_busy_cores: f64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub broker_busy_cores: Option<f64>,
}

/// Ticks since some beginning.
#[derive(Debug, Clone, Copy)]
struct Look {
    at_ns: u64,
    generator: u64,
    host: u64,
    broker: Option<u64>,
}

/// Watches until it is asked what it saw.
#[derive(Debug)]
pub struct CpuWatch {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<Vec<Look>>,
}

impl CpuWatch {
    /// Starts watching, a broker too where its process is given or known; `None` where there is no /proc.
    /// A broker that is given and not there is an error.
    pub fn start(run: &Arc<Run>, broker_pid: Option<u32>) -> anyhow::Result<Option<CpuWatch>> {
        let proc = PathBuf::from("/proc");
        if let Some(pid) = broker_pid
            && process_ticks(&proc, &pid.to_string()).is_none()
        {
            bail!("--broker-pid {pid}: this host has no such process");
        }
        if look(&proc, run.clock.now_ns(), broker_pid).is_none() {
            return Ok(None);
        }
        let (run, (stop, stopped)) = (Arc::clone(run), mpsc::channel());
        let watch = move || {
            let mut looks = Vec::new();
            loop {
                looks.extend(look(&proc, run.clock.now_ns(), broker_pid));
                if stopped.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                    looks.extend(look(&proc, run.clock.now_ns(), broker_pid));
                    return looks;
                }
            }
        };
        let thread = std::thread::Builder::new().name("cpu".into()).spawn(watch);
        Ok(Some(CpuWatch { stop, thread: thread.context("starting the thread that watches CPU")? }))
    }

    /// Ends. The means are over the time from `from_ns` to `to_ns`, as nearly as looks were taken.
    pub fn finish(self, from_ns: u64, to_ns: u64) -> Cpu {
        // Where the thread has ended already, there is nobody to tell.
        let _ = self.stop.send(());
        let looks = self.thread.join().unwrap_or_default();
        cpu(&looks, from_ns, to_ns)
    }
}

fn cpu(looks: &[Look], from_ns: u64, to_ns: u64) -> Cpu {
    let mut seconds: Vec<CpuSecond> = Vec::new();
    for pair in looks.windows(2) {
        // The last look may follow another at once: the ticks are too coarse for it.
        if pair[1].at_ns - pair[0].at_ns > 100_000_000 {
            seconds.push(between(&pair[0], &pair[1]));
        }
    }
    let first = looks.iter().rev().find(|look| look.at_ns <= from_ns).or(looks.first());
    let last = looks.iter().find(|look| look.at_ns >= to_ns).or(looks.last());
    let mean = match (first, last) {
        (Some(first), Some(last)) if last.at_ns > first.at_ns => Some(between(first, last)),
        _ => None,
    };
    let of = |get: fn(&CpuSecond) -> f64| mean.as_ref().map_or(0.0, get);
    Cpu {
        host_cores: std::thread::available_parallelism().map_or(1, usize::from),
        generator_busy_cores_mean: of(|mean| mean.generator_busy_cores),
        host_busy_cores_mean: of(|mean| mean.host_busy_cores),
        broker_busy_cores_mean: mean.as_ref().and_then(|mean| mean.broker_busy_cores),
        seconds,
    }
}

fn between(a: &Look, b: &Look) -> CpuSecond {
    let elapsed = (b.at_ns - a.at_ns) as f64 / 1e9;
    let cores = |a: u64, b: u64| b.saturating_sub(a) as f64 / TICKS_PER_SECOND / elapsed;
    CpuSecond {
        second: a.at_ns as f64 / 1e9,
        generator_busy_cores: cores(a.generator, b.generator),
        host_busy_cores: cores(a.host, b.host),
        broker_busy_cores: a.broker.zip(b.broker).map(|(a, b)| cores(a, b)),
    }
}

fn look(proc: &Path, at_ns: u64, broker_pid: Option<u32>) -> Option<Look> {
    Some(Look {
        at_ns,
        generator: process_ticks(proc, "self")?,
        host: host_ticks(proc)?,
        broker: broker_pid.and_then(|pid| process_ticks(proc, &pid.to_string())),
    })
}

/// The process that listens at a port of the loopback; `None` where it cannot be seen (another user's) or
/// is this one.
pub fn listener_on_loopback(port: u16) -> Option<u32> {
    let pid = listener(Path::new("/proc"), port)?;
    (pid != std::process::id()).then_some(pid)
}

fn listener(proc: &Path, port: u16) -> Option<u32> {
    const LISTENING: &str = "0A";
    let table = fs::read_to_string(proc.join("net/tcp")).ok()?;
    let inode = table.lines().find_map(|line| {
        // sl, local address, remote address, state, queues, timer, retransmits, uid, timeout, inode
        let mut fields = line.split_whitespace();
        let (address, here) = fields.nth(1)?.split_once(':')?;
        let state = fields.nth(1)?;
        let reachable = address.ends_with("7F") || address == "00000000";
        let ours = reachable && state == LISTENING && u16::from_str_radix(here, 16) == Ok(port);
        if ours { fields.nth(5).map(str::to_owned) } else { None }
    })?;
    let socket = format!("socket:[{inode}]");
    let holds = |pid: &u32| {
        let open = fs::read_dir(proc.join(pid.to_string()).join("fd")).into_iter().flatten();
        open.flatten().any(|file| {
            fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == socket.as_str())
        })
    };
    let processes = fs::read_dir(proc).ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.into_iter().find(holds)
}

/// User and system time of a process with all its threads.
fn process_ticks(proc: &Path, process: &str) -> Option<u64> {
    let stat = fs::read_to_string(proc.join(process).join("stat")).ok()?;
    // The name in parentheses may hold anything; what follows begins with field 3.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

/// Time in which some CPU was not idle.
fn host_ticks(proc: &Path) -> Option<u64> {
    let stat = fs::read_to_string(proc.join("stat")).ok()?;
    let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    // user nice system idle iowait irq softirq steal; guests are in user already.
    let busy = |(at, ticks): (usize, &str)| match at {
        3 | 4 => Some(0),
        _ => ticks.parse::<u64>().ok(),
    };
    fields.take(8).enumerate().map(busy).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proc() -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir(proc.path().join("self")).unwrap();
        let stat = "42 (a (b) c) S 1 42 42 0 -1 4194560 100 0 0 0 700 300 0 0 20 0 4 0 5 6 7";
        fs::write(proc.path().join("self/stat"), stat).unwrap();
        let stat = "cpu  100 1 50 9000 800 7 8 4 0 0\ncpu0 1 2 3\n";
        fs::write(proc.path().join("stat"), stat).unwrap();
        proc
    }

    #[test]
    fn ticks_are_read() {
        let proc = proc();
        let seen = look(proc.path(), 5, Some(77)).unwrap();
        assert_eq!((seen.generator, seen.host, seen.broker), (1_000, 170, None));
        assert!(look(&proc.path().join("self"), 5, None).is_none());
    }

    #[test]
    fn a_listener_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(super::listener(Path::new("/proc"), port), Some(std::process::id()));
        assert_eq!(listener_on_loopback(port), None, "it is this process");
        drop(listener);
        assert_eq!(super::listener(Path::new("/proc"), port), None);
    }

    #[test]
    fn means_are_over_the_measured_time() {
        let at = |second: u64, generator: u64| Look {
            at_ns: second * 1_000_000_000,
            generator,
            host: 2 * generator,
            broker: Some(generator / 2),
        };
        let looks = [at(0, 0), at(1, 200), at(2, 250), at(3, 300), at(4, 700)];
        let cpu = cpu(&looks, 1_200_000_000, 2_900_000_000);
        assert_eq!(cpu.generator_busy_cores_mean, 0.5);
        assert_eq!(cpu.host_busy_cores_mean, 1.0);
        assert_eq!(cpu.broker_busy_cores_mean, Some(0.25));
        let series: Vec<f64> = cpu.seconds.iter().map(|s| s.generator_busy_cores).collect();
        assert_eq!(series, [2.0, 0.5, 0.5, 4.0]);
    }
}
