//! Servers as processes: the real binaries, on ports of their own, gone when the test is.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant};

/// How long a condition may take before a test gives up: long, because machines are noisy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Path of a binary of this workspace, built first in the profile of the test that asks.
///
/// `cargo test -p ringmq-tests` does not build other packages' binaries by itself.
pub fn binary(name: &str) -> PathBuf {
    static BUILT: Once = Once::new();
    let test = std::env::current_exe().expect("a test has a path");
    let folder = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/test").to_owned();
    BUILT.call_once(|| {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--quiet", "-p", "ringmq-broker", "-p", "ringmq-namesrv"]);
        cargo.args(["-p", "ringmq-cli", "-p", "ringmq-bench", "--bins"]);
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let status = cargo.status().expect("cargo runs");
        assert!(status.success(), "the servers do not build");
    });
    folder.join(name)
}

/// A process that is killed when it is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    ready: String,
}

impl Process {
    /// Starts a server and waits for its ready line.
    pub fn start(name: &str, binary_name: &str, args: &[String]) -> Process {
        Process::try_start(name, binary_name, args)
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"))
    }

    /// Starts a server; what it says on standard error when it ends before it is ready is the error.
    pub fn try_start(name: &str, binary_name: &str, args: &[String]) -> Result<Process, String> {
        let mut command = Command::new(binary(binary_name));
        // RINGMQ_* are a server's settings, and our own switches are none of them.
        for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("RINGMQ_")) {
            command.env_remove(key);
        }
        let mut child = command
            .args(args)
            .env("RINGMQ_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let stdout = child.stdout.take().expect("piped");
        let stderr = child.stderr.take().expect("piped");
        let title = name.to_owned();
        // Standard error is read all the time: a full pipe would stop the server.
        let errors = std::thread::spawn(move || {
            let mut text = String::new();
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                eprintln!("[{title}] {line}");
                text.push_str(&line);
                text.push('\n');
            }
            text
        });
        let mut lines = BufReader::new(stdout);
        let mut ready = String::new();
        loop {
            ready.clear();
            if lines.read_line(&mut ready).unwrap_or(0) == 0 {
                let _ = child.kill();
                let status = child.wait().map_err(|error| error.to_string())?;
                let text = errors.join().unwrap_or_default();
                return Err(format!("{status}: {text}"));
            }
            if ready.starts_with("ready") {
                break;
            }
        }
        std::thread::spawn(move || lines.lines().map_while(Result::ok).for_each(drop));
        Ok(Process { name: name.to_owned(), child, ready })
    }

    /// The value of `key=value` in the ready line.
    pub fn value(&self, key: &str) -> &str {
        let prefix = format!("{key}=");
        let found = self.ready.split_whitespace().find_map(|word| word.strip_prefix(&prefix));
        found.unwrap_or_else(|| panic!("{} says no {key}: {}", self.name, self.ready))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.value("listen").parse().expect("an address")
    }

    /// What its HTTP side answers: status and body.
    pub fn http(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.value("http")).expect("it serves HTTP");
        let request = format!("GET {path} HTTP/1.1\r\nHost: tests\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers in text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.expect("a status"), body.to_owned())
    }

    /// The sum of a metric over its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.http("/metrics");
        let mine = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        mine.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// kill -9, and waits until it is gone.
    pub fn kill(mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        self.child.wait().expect("it was ours");
    }

    /// SIGTERM.
    pub fn ask_to_stop(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    }

    /// Whether it has ended, but for threads that the kernel keeps until a disk answers.
    pub fn has_left(&mut self) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        let state = status.ok().and_then(|text| text.rsplit(") ").next()?.chars().next());
        state.is_none_or(|state| state == 'Z') || !matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGTERM; the exit code.
    pub fn terminate(mut self) -> Option<i32> {
        self.ask_to_stop();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it was ours") {
                return status.code();
            }
            assert!(Instant::now() < deadline, "{} does not end", self.name);
            std::thread::yield_now();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A name server on a port of its own.
pub fn namesrv(name: &str) -> Process {
    let args = ["--listen", "127.0.0.1:0", "--name", name, "--http-listen", "off"];
    Process::start(name, "ringmq-namesrv", &args.map(str::to_owned))
}

/// How a broker is started.
#[derive(Debug, Clone)]
pub struct BrokerOptions {
    /// Its name.
    pub name: String,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// 0 picks one.
    pub port: u16,
    /// Shards, when the directory is new.
    pub shards: u16,
    /// Executors.
    pub cores: u16,
    /// Addresses of name servers.
    pub namesrv: Vec<SocketAddr>,
    /// More flags.
    pub more: Vec<String>,
}

impl BrokerOptions {
    /// A broker with small files, that leaves the disk's last bytes to others.
    pub fn new(name: &str, data_dir: &Path) -> BrokerOptions {
        BrokerOptions {
            name: name.to_owned(),
            data_dir: data_dir.to_owned(),
            port: 0,
            shards: 2,
            cores: 1,
            namesrv: Vec::new(),
            more: Vec::new(),
        }
    }

    /// With one more flag.
    pub fn with(mut self, flag: &str, value: &str) -> BrokerOptions {
        self.more.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// Its command line.
    pub fn args(&self) -> Vec<String> {
        let namesrv: Vec<String> = self.namesrv.iter().map(ToString::to_string).collect();
        let mut args = vec![
            format!("--broker={}", self.name),
            format!("--data-dir={}", self.data_dir.display()),
            format!("--port={}", self.port),
            format!("--shards={}", self.shards),
            format!("--cores={}", self.cores),
            format!("--namesrv={}", namesrv.join(";")),
            "--http-listen=127.0.0.1:0".to_owned(),
            "--segment-bytes=16 MiB".to_owned(),
            "--zero-ahead-bytes=0".to_owned(),
            "--disk-free-bytes=64 MiB".to_owned(),
        ];
        // What a test asks for stands in the place of what is usual.
        let key = |arg: &str| arg.split('=').next().unwrap_or_default().to_owned();
        args.retain(|arg| !self.more.iter().any(|more| key(more) == key(arg)));
        args.extend(self.more.iter().cloned());
        args
    }

    /// Starts it.
    pub fn start(&self) -> Process {
        Process::start(&self.name, "ringmq-broker", &self.args())
    }
}

/// Waits until `condition` holds, looking again whenever it may have changed.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    eventually_ok(what, || if condition() { Ok(()) } else { Err(String::new()) });
}

/// Waits until `condition` is `Ok`; panics with its last error when that takes longer than [`PATIENCE`].
pub fn eventually_ok(what: &str, mut condition: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(why) = condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?} {why}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
