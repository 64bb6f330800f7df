//! The loopback: round trips between two threads, and one stream at full speed.
//!
//! Where the scheduler puts the two threads makes a factor of several: on one CPU a round trip is two context
//! switches, across CPUs two wake-ups of a sleeping one. So both are measured, with the threads held in place.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};

use super::Throughput;
use crate::record::Latencies;

/// About a small produce request and its answer.
const ECHO_BYTES: usize = 256;
const STREAM_CHUNK_BYTES: usize = 256 << 10;

/// Where the two ends run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// Each on a CPU of its own, as a client and a broker's core.
    OnTwoCpus,
    /// Both on one CPU.
    OnOneCpu,
}

/// A connection to a thread that sends back what it gets.
#[derive(Debug)]
pub struct RoundTrips {
    commands: mpsc::Sender<Duration>,
    done: mpsc::Receiver<()>,
    asking: JoinHandle<io::Result<Latencies>>,
    echo: JoinHandle<io::Result<()>>,
}

impl RoundTrips {
    /// Connects two threads.
    pub fn start(ends: Ends) -> anyhow::Result<RoundTrips> {
        let (near, far) = connected_pair()?;
        let (near_cpu, far_cpu) = cpus(ends);
        let (commands, todo) = mpsc::channel();
        let (finished, done) = mpsc::channel();
        let echo = thread("loopback-echo", move || {
            hold_on(far_cpu);
            echo(far)
        })?;
        let asking = thread("loopback-ask", move || {
            hold_on(near_cpu);
            ask(near, &todo, &finished)
        })?;
        Ok(RoundTrips { commands, done, asking, echo })
    }

    /// One round trip after the other for `duration`.
    pub fn measure(&mut self, duration: Duration) -> anyhow::Result<()> {
        // Where a thread has ended, `finish` knows why.
        if self.commands.send(duration).is_err() || self.done.recv().is_err() {
            bail!("the loopback cannot be measured");
        }
        Ok(())
    }

    /// Ends the threads and gives all samples.
    pub fn finish(self) -> anyhow::Result<Latencies> {
        drop(self.commands);
        let latencies = self.asking.join().map_err(|_| anyhow!("the loopback probe panicked"))?;
        let ended = self.echo.join().map_err(|_| anyhow!("the loopback echo panicked"))?;
        ended.context("echoing over the loopback")?;
        latencies.context("asking over the loopback")
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut bytes = [0; ECHO_BYTES];
    loop {
        match stream.read_exact(&mut bytes) {
            Ok(()) => stream.write_all(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn ask(
    mut stream: TcpStream,
    todo: &mpsc::Receiver<Duration>,
    finished: &mpsc::Sender<()>,
) -> io::Result<Latencies> {
    let mut latencies = Latencies::default();
    let mut bytes = [7; ECHO_BYTES];
    while let Ok(duration) = todo.recv() {
        let mut sent = Instant::now();
        let end = sent + duration;
        while sent < end {
            stream.write_all(&bytes)?;
            stream.read_exact(&mut bytes)?;
            let done = Instant::now();
            latencies.add(nanoseconds(done - sent), 1);
            sent = done;
        }
        if finished.send(()).is_err() {
            break;
        }
    }
    Ok(latencies)
}

fn thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.into()).spawn(work)
}

/// CPUs for the two ends; where there is one only, it is both.
#[cfg(target_os = "linux")]
fn cpus(ends: Ends) -> (Option<usize>, Option<usize>) {
    let Ok(allowed) = rustix::thread::sched_getaffinity(None) else { return (None, None) };
    let mut usable = (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    let first = usable.next();
    match ends {
        Ends::OnOneCpu => (first, first),
        Ends::OnTwoCpus => (first, usable.next().or(first)),
    }
}

#[cfg(not(target_os = "linux"))]
fn cpus(_: Ends) -> (Option<usize>, Option<usize>) {
    (None, None)
}

#[cfg(target_os = "linux")]
fn hold_on(cpu: Option<usize>) {
    if let Some(cpu) = cpu {
        let mut only = rustix::thread::CpuSet::new();
        only.set(cpu);
        // Where it is refused, the scheduler decides, as it does everywhere else.
        let _ = rustix::thread::sched_setaffinity(None, &only);
    }
}

#[cfg(not(target_os = "linux"))]
fn hold_on(_: Option<usize>) {}

/// One stream at full speed for `duration`.
pub fn one_stream(duration: Duration) -> io::Result<Throughput> {
    let (mut stream, sink) = sink()?;
    let chunk = vec![7; STREAM_CHUNK_BYTES];
    let start = Instant::now();
    loop {
        // At least once: on a busy machine a short slice may be over before it began.
        stream.write_all(&chunk)?;
        if start.elapsed() >= duration {
            break;
        }
    }
    drop(stream);
    let bytes = sink.join().map_err(|_| io::Error::other("the reader panicked"))??;
    let mut throughput = Throughput::default();
    throughput.add(bytes, start.elapsed());
    Ok(throughput)
}

/// A connection whose other end reads and forgets; its thread ends with the connection and says how much.
pub(super) fn sink() -> io::Result<(TcpStream, JoinHandle<io::Result<u64>>)> {
    let (near, mut far) = connected_pair()?;
    let reader = thread("loopback-sink", move || {
        let mut chunk = vec![0; STREAM_CHUNK_BYTES];
        let mut bytes = 0u64;
        loop {
            match far.read(&mut chunk)? {
                0 => return io::Result::Ok(bytes),
                count => bytes += count as u64,
            }
        }
    })?;
    Ok((near, reader))
}

fn connected_pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    Ok((near, far))
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_stream_give_figures() {
        for ends in [Ends::OnOneCpu, Ends::OnTwoCpus] {
            let mut probe = RoundTrips::start(ends).unwrap();
            probe.measure(Duration::from_millis(10)).unwrap();
            probe.measure(Duration::from_millis(10)).unwrap();
            let latencies = probe.finish().unwrap();
            // One in each go at least; how many more is the machine's affair.
            assert!(latencies.count() >= 2, "{ends:?}");
            assert!(latencies.at_ns(50.0) > 0, "{ends:?}");
        }
        let stream = one_stream(Duration::from_millis(20)).unwrap();
        assert!(stream.bytes_per_second() > 0.0);
    }
}
