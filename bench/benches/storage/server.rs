//! A broker as a process of its own, on ports of its own, killed when it is dropped.

use anyhow::{Context as _, bail};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How a broker is started.
#[derive(Debug, Clone)]
pub struct Options {
    pub data_dir: PathBuf,
    pub namesrv: Option<SocketAddr>,
    pub flags: Vec<String>,
}

impl Options {
    /// One shard on one core.
    pub fn new(data_dir: &Path) -> Options {
        Options { data_dir: data_dir.to_owned(), namesrv: None, flags: Vec::new() }
    }

    /// Starts it and waits for its ready line.
    pub fn start(&self) -> anyhow::Result<Server> {
        let mut args = vec![
            format!("--data-dir={}", self.data_dir.display()),
            "--port=0".to_owned(),
            "--shards=1".to_owned(),
            "--cores=1".to_owned(),
            "--http-listen=127.0.0.1:0".to_owned(),
        ];
        args.extend(self.namesrv.map(|address| format!("--namesrv={address}")));
        args.extend(self.flags.iter().cloned());
        Server::start("ringmq-broker", &args)
    }
}

/// Path of a binary of this workspace, built first in the profile of the benchmark.
fn binary(name: &str) -> anyhow::Result<PathBuf> {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    if FOLDER.get().is_none() {
        let bench = std::env::current_exe()?;
        let folder = bench.parent().and_then(Path::parent).context("target/PROFILE/deps/bench")?;
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "-p", "ringmq-broker", "-p", "ringmq-namesrv", "--bins"]);
        if folder.ends_with("release") {
            build.arg("--release");
        }
        build.arg("--target-dir").arg(folder.parent().context("target/PROFILE")?);
        build.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        if !build.status().context("starting cargo")?.success() {
            bail!("the servers do not build");
        }
        let _ = FOLDER.set(folder.to_owned());
    }
    Ok(FOLDER.get().context("set above")?.join(name))
}

/// A name server.
pub fn namesrv() -> anyhow::Result<Server> {
    let args = ["--listen=127.0.0.1:0", "--name=bench", "--http-listen=off"];
    Server::start("ringmq-namesrv", &args.map(str::to_owned))
}

/// CPU seconds of a process or a thread, by its `stat` in /proc.
pub fn cpu_seconds_of(stat: &str) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(stat)?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("a name")?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    Ok((ticks(11) + ticks(12)) / 100.0)
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    ready: String,
    pub started_in: Duration,
}

impl Server {
    fn start(name: &str, args: &[String]) -> anyhow::Result<Server> {
        let mut command = Command::new(binary(name)?);
        for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("RINGMQ_")) {
            if key != "RINGMQ_LOG" {
                command.env_remove(key);
            }
        }
        if std::env::var_os("RINGMQ_LOG").is_none() {
            command.env("RINGMQ_LOG", "warn");
        }
        let begun = Instant::now();
        let mut child = command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let mut lines = BufReader::new(child.stdout.take().context("piped")?);
        let mut ready = String::new();
        while !ready.starts_with("ready") {
            ready.clear();
            if lines.read_line(&mut ready)? == 0 {
                bail!("{name} ended before it was ready: {}", child.wait()?);
            }
        }
        let started_in = begun.elapsed();
        Ok(Server { child, ready, started_in })
    }

    /// The value of `key=value` in the ready line.
    pub fn address(&self, key: &str) -> anyhow::Result<SocketAddr> {
        let prefix = format!("{key}=");
        let found = self.ready.split_whitespace().find_map(|word| word.strip_prefix(&prefix));
        found.with_context(|| format!("no {key} in {}", self.ready))?.parse().context("an address")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The sum of a metric over its labels.
    pub fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let mut stream = TcpStream::connect(self.address("http")?)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let values = text.lines().filter_map(|line| {
            let (left, value) = line.rsplit_once(' ')?;
            let is_it = left == name || left.strip_prefix(name)?.starts_with('{');
            is_it.then(|| value.parse::<f64>().ok())?
        });
        Ok(values.sum())
    }

    /// What the figures say once they were published again: they are, each second.
    pub fn settled_metric(&self, name: &str) -> anyhow::Result<f64> {
        std::thread::sleep(Duration::from_millis(1500));
        self.metric(name)
    }

    /// CPU seconds that it used so far, all threads.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        cpu_seconds_of(&format!("/proc/{}/stat", self.pid()))
    }

    /// kill -9.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits; how long it took.
    pub fn stop(mut self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the server ended with {status}");
        }
        Ok(begun.elapsed())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
