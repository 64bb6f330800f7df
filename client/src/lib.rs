//! Client of the RingMQ message broker, on tokio.
//!
//! ```no_run
//! use ringmq::{Client, Filter, Message, MessageType, TopicSpec};
//! use std::time::Duration;
//!
//! # async fn bill(_: &ringmq::Record) -> Result<(), std::io::Error> { Ok(()) }
//! # async fn example() -> Result<(), ringmq::Error> {
//! let client = Client::connect("127.0.0.1:9876").await?; // or Client::from_env(): NAMESRV_ADDR
//! let admin = client.admin();
//! admin.create_topic(TopicSpec::new("orders").queues(16).message_type(MessageType::Normal)).await?;
//!
//! let producer = client.producer("order-service").build().await?;
//! let receipt = producer.send(Message::new("orders", "hello")).await?;
//! println!("{} is at {}", receipt.message_id, receipt.offset);
//! let later = Message::new("orders", "later").deliver_after(Duration::from_secs(90));
//! let handle = producer.send(later).await?.recall_handle(); // producer.recall(&handle) takes it back
//! assert!(handle.is_some());
//! let delivery = producer.enqueue(Message::new("orders", "a").tag("paid").key("42")).await?;
//! delivery.await?; // enqueue waited for window room, this for the acknowledgement
//! producer.send_oneway(Message::new("metrics", "cpu=3"))?;
//! let receipts = producer.send_batch((0..100).map(|i| Message::new("orders", i.to_string()))).await?;
//! assert_eq!(receipts.len(), 100);
//! let _ = producer.send(Message::new("orders", "step 1").group("user-7")).await?; // in order per group
//!
//! // push: Ok = consumed, Err = delivered again, with a growing pause
//! let push = client
//!     .push_consumer("billing")
//!     .subscribe("orders", Filter::tags("paid || refunded"))
//!     .concurrency(64)
//!     .listen(|message| async move { bill(&message).await })
//!     .await?;
//!
//! // pull: you own the position
//! let mut pull = client.pull_consumer("audit").subscribe("orders", Filter::all()).build().await?;
//! for record in pull.poll(Duration::from_secs(1)).await? {
//!     println!("{}", record.offset());
//! }
//! pull.commit().await?;
//!
//! // pop: every message carries its own acknowledgement
//! let consumer = client
//!     .simple_consumer("shipping")
//!     .subscribe("orders", Filter::tags("paid || refunded"))
//!     .invisible_for(Duration::from_secs(30))
//!     .build()
//!     .await?;
//! let mut messages = consumer.messages(); // a Stream
//! while let Some(message) = messages.try_next().await? {
//!     match bill(&message).await {
//!         Ok(()) => message.ack().await?, // consumes it: no double ack
//!         Err(_) => message.retry_after(Duration::from_secs(10)).await?,
//!     }
//! }
//!
//! for q in admin.lag("billing").await? {
//!     println!("{} {} {} {:?}", q.queue.topic, q.queue.id, q.messages, q.age);
//! }
//! push.close(Duration::from_secs(5)).await?;
//! client.shutdown(Duration::from_secs(10)).await?; // drains windows, commits, leaves groups
//! # Ok(()) }
//! ```
//!
//! Clients, producers and consumers are cheap handles. All need a tokio runtime with its I/O and time
//! drivers. Bodies, checksums and filters never leave the sight of this crate: a record that reaches a user
//! was verified end to end.

mod admin;
mod client;
mod connection;
mod consumer;
mod error;
mod filter;
mod identity;
mod message;
mod pool;
mod producer;
mod record;
mod route;
mod timer;

pub use admin::{
    Admin, BrokerStatus, FoundMessages, GroupDescription, GroupLag, GroupMember, GroupSettings,
    GroupSpec, KeyQuery, LagBounds, MessageType, OwnedQueue, PendingMessage, PendingMessages,
    Permission, QueueLag, QueueStats, ResetTo, RetryPauses, ShardStatus, TopicDescription,
    TopicSpec,
};
pub use client::{Client, ClientBuilder};
pub use consumer::{
    ConsumeFrom, Messages, PullConsumer, PullConsumerBuilder, Pulled, PushConsumer,
    PushConsumerBuilder, Received, SeekTo, SimpleConsumer, SimpleConsumerBuilder,
};
pub use error::{Error, ErrorKind, Result};
pub use filter::Filter;
pub use identity::{MessageRef, StoredMessageId};
pub use message::{Flush, Message, MessageId};
pub use producer::{Delivery, Producer, ProducerBuilder, SendReceipt, SendStatus};
pub use record::{Origin, Record};
pub use ringmq_schema::error::Status;
pub use route::{BrokerRoute, Queue, TopicRoute};
pub use timer::RecallHandle;

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
