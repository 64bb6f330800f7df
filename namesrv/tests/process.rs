//! The binary: ready line, settings, signals, health.

#![allow(clippy::unwrap_used)] // A test says what went wrong by panicking.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

const BINARY: &str = env!("CARGO_BIN_EXE_ringmq-namesrv");

fn run(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(BINARY).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn terminate(child: &Child) {
    let status = Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(status.success());
}

#[test]
fn it_says_when_it_is_ready_serves_and_ends_on_sigterm() {
    let mut child = Command::new(BINARY)
        .args(["--listen", "127.0.0.1:0", "--http-listen=127.0.0.1:0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut words = line.split_whitespace();
    assert!(words.by_ref().take(2).eq(["ready", "namesrv"]), "{line}");
    let listen = words.next().and_then(|word| word.strip_prefix("listen=")).unwrap();
    let http = words.next().and_then(|word| word.strip_prefix("http=")).unwrap();
    TcpStream::connect(listen).unwrap();
    for (path, part) in [
        ("/healthz", "200"),
        ("/readyz", "200"),
        ("/metrics", "ringmq_namesrv_connections"),
        ("/metrics", "# EOF"),
    ] {
        let mut stream = TcpStream::connect(http).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.contains(part), "{path}: {text}");
    }
    terminate(&child);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn settings_are_printed_and_faults_are_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "expiry = \"3 s\"\n").unwrap();
    let path = file.path().to_str().unwrap();
    let (code, out, _) = run(&["--config", path, "--insecure", "--print-config"]);
    assert_eq!(code, 0);
    assert!(out.contains("expiry = \"3 s\""), "{out}");
    assert!(out.lines().any(|l| l.starts_with("insecure = true") && l.contains("# flag")), "{out}");
    let (code, _, error) = run(&["--listen=0.0.0.0:0"]);
    assert_eq!(code, 1);
    assert!(error.contains("--insecure"), "{error}");
    std::fs::write(file.path(), "expirey = \"3 s\"\n").unwrap();
    let (code, _, error) = run(&["--config", path]);
    assert_eq!(code, 1);
    assert!(error.contains("did you mean \"expiry\""), "{error}");
    assert_eq!(run(&["--nonsense"]).0, 2);
}
