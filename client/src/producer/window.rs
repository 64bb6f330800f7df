//! The window: how much may be taken and not yet acknowledged.
//!
//! Whoever waits for room gets it in the order of asking.

use crate::error::{Error, ErrorKind, Result};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Room in the window, in messages and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) messages: u32,
    pub(super) bytes: u32,
}

impl Room {
    pub(super) fn add(&mut self, other: Room) {
        self.messages += other.messages;
        self.bytes += other.bytes;
    }
}

/// See the module.
pub(super) struct Window {
    messages: Semaphore,
    bytes: Semaphore,
    most: Room,
}

/// Room that was taken; given back when it is dropped before [`Taken::keep`].
pub(super) struct Taken<'a> {
    window: &'a Window,
    room: Room,
}

impl Taken<'_> {
    /// The room now belongs to a batch, which gives it back.
    pub(super) fn keep(mut self) -> Room {
        std::mem::take(&mut self.room)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.window.give_back(self.room);
    }
}

impl Window {
    pub(super) fn new(messages: usize, bytes: usize) -> Window {
        // A semaphore takes at most u32 at a time, and its bound is usize::MAX >> 3.
        let most = Room {
            messages: messages.min(u32::MAX as usize >> 3) as u32,
            bytes: bytes.min(u32::MAX as usize >> 3) as u32,
        };
        Window {
            messages: Semaphore::new(most.messages as usize),
            bytes: Semaphore::new(most.bytes as usize),
            most,
        }
    }

    /// Room for what may be larger than the window: then it goes alone.
    fn fit(&self, messages: usize, bytes: usize) -> Room {
        Room {
            messages: messages.min(self.most.messages as usize) as u32,
            bytes: bytes.min(self.most.bytes as usize) as u32,
        }
    }

    /// Takes room if there is some.
    pub(super) fn try_take(&self, messages: usize, bytes: usize) -> Result<Taken<'_>> {
        let room = self.fit(messages, bytes);
        let mut taken = Taken { window: self, room: Room::default() };
        let first = self.messages.try_acquire_many(room.messages).map_err(|_| self.full())?;
        first.forget();
        taken.room.messages = room.messages;
        self.bytes
            .try_acquire_many(room.bytes)
            .map(SemaphorePermit::forget)
            .map_err(|_| self.full())?;
        taken.room.bytes = room.bytes;
        Ok(taken)
    }

    /// Takes room as soon as there is some.
    pub(super) async fn take(&self, messages: usize, bytes: usize) -> Taken<'_> {
        let room = self.fit(messages, bytes);
        let mut taken = Taken { window: self, room: Room::default() };
        self.messages.acquire_many(room.messages).await.expect("never closed").forget();
        taken.room.messages = room.messages;
        self.bytes.acquire_many(room.bytes).await.expect("never closed").forget();
        taken.room.bytes = room.bytes;
        taken
    }

    /// Waits until all that was taken before is given back; who asks later waits behind.
    pub(super) async fn drained(&self) {
        let all = self.messages.acquire_many(self.most.messages).await;
        drop(all.expect("never closed"));
    }

    pub(super) fn give_back(&self, room: Room) {
        self.messages.add_permits(room.messages as usize);
        self.bytes.add_permits(room.bytes as usize);
    }

    /// Messages and bytes taken.
    pub(super) fn in_use(&self) -> (usize, usize) {
        let messages = self.most.messages as usize - self.messages.available_permits();
        (messages, self.most.bytes as usize - self.bytes.available_permits())
    }

    pub(super) fn full(&self) -> Error {
        let Room { messages, bytes } = self.most;
        let text = format!("the window of {messages} messages and {bytes} bytes is full");
        Error::new(ErrorKind::WindowFull, "send", text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn room_comes_back_and_bounds_hold() {
        let window = Window::new(2, 100);
        let first = window.try_take(1, 60).unwrap();
        assert_eq!(window.try_take(1, 60).err().unwrap().kind(), ErrorKind::WindowFull);
        assert_eq!(window.in_use(), (1, 60), "the refused one left nothing behind");
        let room = first.keep();
        assert_eq!(window.in_use(), (1, 60));
        window.give_back(room);
        let large = window.take(1, 1000).await;
        assert_eq!(window.in_use(), (1, 100), "larger than the window: alone");
        drop(large);
        window.drained().await;
        assert_eq!(window.in_use(), (0, 0));
    }
}
