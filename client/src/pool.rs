//! Connections to brokers and name servers, one per address, shard and purpose.
//!
//! Produce, control and fetch are kept apart, so that a long transfer never delays an acknowledgement.

use crate::connection::{Connection, Opening};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    Produce,
    Control,
    Fetch,
}

/// Names a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) address: Arc<str>,
    pub(crate) shard: u16,
    pub(crate) purpose: Purpose,
}

/// See the module.
pub(crate) struct Pool {
    slots: Mutex<HashMap<Key, Arc<Slot>>>,
    client: String,
    limit: Duration,
    closed: AtomicBool,
}

#[derive(Default)]
struct Slot {
    current: Mutex<Option<Arc<Connection>>>,
    /// Held while connecting: all who need the connection wait for one attempt.
    connecting: tokio::sync::Mutex<()>,
}

impl Slot {
    fn ready(&self) -> Option<Arc<Connection>> {
        let current = self.current.lock().expect("nothing panics with it locked");
        current.as_ref().filter(|connection| !connection.is_closed()).cloned()
    }
}

impl Pool {
    pub(crate) fn new(client: String, limit: Duration) -> Pool {
        Pool { slots: Mutex::default(), client, limit, closed: AtomicBool::new(false) }
    }

    /// The connection, if it is open.
    pub(crate) fn ready(&self, key: &Key) -> Option<Arc<Connection>> {
        let slots = self.slots.lock().expect("nothing panics with it locked");
        slots.get(key).and_then(|slot| slot.ready())
    }

    /// The connection, opened when it is not.
    pub(crate) async fn get(&self, key: &Key) -> Result<Arc<Connection>> {
        let slot = {
            let mut slots = self.slots.lock().expect("nothing panics with it locked");
            Arc::clone(slots.entry(key.clone()).or_default())
        };
        if let Some(connection) = slot.ready() {
            return Ok(connection);
        }
        let _one_at_a_time = slot.connecting.lock().await;
        if let Some(connection) = slot.ready() {
            return Ok(connection);
        }
        let connection =
            Connection::open(Arc::clone(&key.address), self.opening(key.shard)).await?;
        let mut current = slot.current.lock().expect("nothing panics with it locked");
        // Looked at with the slot locked: `close` either sees the connection or is seen here.
        if self.closed.load(Ordering::SeqCst) {
            connection.close(Error::closed("connect"));
            return Err(Error::closed("connect").on(&*key.address));
        }
        *current = Some(Arc::clone(&connection));
        Ok(connection)
    }

    pub(crate) fn opening(&self, shard: u16) -> Opening {
        Opening { shard, client: self.client.clone(), limit: self.limit, pushes: None }
    }

    /// Closes every connection, and those that are being opened.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let slots = std::mem::take(&mut *self.slots.lock().expect("nothing panics with it locked"));
        for slot in slots.into_values() {
            let current = slot.current.lock().expect("nothing panics with it locked").take();
            if let Some(connection) = current {
                connection.close(Error::closed("wait for an answer"));
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close();
    }
}
