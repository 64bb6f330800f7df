//! The loopback: round trips between two threads, and one stream at full speed.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};

use crate::record::Latencies;

/// About a small produce request and its answer.
const ECHO_BYTES: usize = 256;
const STREAM_CHUNK_BYTES: usize = 256 << 10;

/// A connection to a thread that sends back what it gets.
#[derive(Debug)]
pub struct RoundTrips {
    stream: TcpStream,
    echo: JoinHandle<io::Result<()>>,
    latencies: Latencies,
}

impl RoundTrips {
    /// Connects and starts the other side.
    pub fn start() -> anyhow::Result<RoundTrips> {
        let (stream, mut peer) = connected_pair()?;
        let echo = std::thread::Builder::new().name("loopback-echo".into()).spawn(move || {
            let mut bytes = [0; ECHO_BYTES];
            loop {
                match peer.read_exact(&mut bytes) {
                    Ok(()) => peer.write_all(&bytes)?,
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
        })?;
        Ok(RoundTrips { stream, echo, latencies: Latencies::default() })
    }

    /// One round trip after the other for `duration`.
    pub fn measure(&mut self, duration: Duration) -> anyhow::Result<()> {
        let mut bytes = [7; ECHO_BYTES];
        let end = Instant::now() + duration;
        let mut sent = Instant::now();
        while sent < end {
            self.stream.write_all(&bytes).context("sending over the loopback")?;
            self.stream.read_exact(&mut bytes).context("receiving over the loopback")?;
            let done = Instant::now();
            self.latencies.add(nanoseconds(done - sent), 1);
            sent = done;
        }
        Ok(())
    }

    /// Ends the other side and gives all samples.
    pub fn finish(self) -> anyhow::Result<Latencies> {
        self.stream.shutdown(Shutdown::Write).context("closing the loopback probe")?;
        let ended = self.echo.join().map_err(|_| anyhow!("the loopback echo panicked"))?;
        ended.context("echoing over the loopback")?;
        Ok(self.latencies)
    }
}

/// Bytes per second of one stream.
pub fn one_stream(duration: Duration) -> io::Result<f64> {
    let (mut stream, mut peer) = connected_pair()?;
    let reader = std::thread::Builder::new().name("loopback-sink".into()).spawn(move || {
        let mut chunk = vec![0; STREAM_CHUNK_BYTES];
        let mut bytes = 0u64;
        loop {
            match peer.read(&mut chunk)? {
                0 => return io::Result::Ok(bytes),
                count => bytes += count as u64,
            }
        }
    })?;
    let chunk = vec![7; STREAM_CHUNK_BYTES];
    let start = Instant::now();
    while start.elapsed() < duration {
        stream.write_all(&chunk)?;
    }
    drop(stream);
    let bytes = reader.join().map_err(|_| io::Error::other("the reader panicked"))??;
    Ok(bytes as f64 / start.elapsed().as_secs_f64())
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
        let mut probe = RoundTrips::start().unwrap();
        probe.measure(Duration::from_millis(10)).unwrap();
        probe.measure(Duration::from_millis(10)).unwrap();
        let latencies = probe.finish().unwrap();
        assert!(latencies.count() > 10);
        assert!(latencies.at_ns(50.0) > 0);
        assert!(one_stream(Duration::from_millis(20)).unwrap() > 1e6);
    }
}
