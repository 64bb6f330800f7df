//! A server that sends back what it gets: one glommio executor on the broker's CPU, as the broker's own.

use crate::bed::{Side, stay_on};
use anyhow::{Context as _, anyhow};
use futures_util::{AsyncReadExt as _, AsyncWriteExt as _};
use glommio::net::TcpListener;
use glommio::{LocalExecutorBuilder, Placement};
use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread::JoinHandle;

/// What is read at once: as the broker's cores do.
const BUFFER_BYTES: usize = 256 << 10;

/// A running echo, for a number of connections.
pub struct Echo {
    pub address: SocketAddr,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Echo {
    /// Starts it.
    pub fn start(connections: usize) -> anyhow::Result<Echo> {
        let (listening, address) = mpsc::channel();
        let thread = std::thread::Builder::new().name("echo".to_owned()).spawn(move || {
            stay_on(Side::Broker)?;
            let executor = LocalExecutorBuilder::new(Placement::Unbound)
                .make()
                .map_err(|error| anyhow!("cannot make an executor: {error}"))?;
            executor.run(serve(connections, listening))
        })?;
        Ok(Echo { address: address.recv().context("the echo did not start")?, thread })
    }

    /// Waits until all its connections are closed.
    pub fn finish(self) -> anyhow::Result<()> {
        self.thread.join().ok().context("the echo panicked")?
    }
}

async fn serve(connections: usize, listening: mpsc::Sender<SocketAddr>) -> anyhow::Result<()> {
    let failed = |error| anyhow!("the echo: {error}");
    let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
    listening.send(listener.local_addr().map_err(failed)?)?;
    let mut tasks = Vec::new();
    for _ in 0..connections {
        let mut stream = listener.accept().await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        tasks.push(glommio::spawn_local(async move {
            let mut buffer = vec![0; BUFFER_BYTES];
            loop {
                match stream.read(&mut buffer).await? {
                    0 => return std::io::Result::Ok(()),
                    bytes => stream.write_all(&buffer[..bytes]).await?,
                }
            }
        }));
    }
    for task in tasks {
        task.await?;
    }
    Ok(())
}
