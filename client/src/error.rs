//! The one error of this crate.
//!
//! It names the operation and its target, knows whether trying again can help, and keeps its cause for
//! [`std::error::Error::source`]; `Display` does not repeat the cause.

use crate::producer::SendReceipt;
use ringmq_schema::connection::Refusal;
use ringmq_schema::error::Status;
use ringmq_schema::frame;
use std::fmt;
use std::time::Duration;

/// Result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, coarsely: decide on this, print the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request breaks a rule or a limit; it will never be accepted.
    Invalid,
    /// No such topic, queue, group, broker or message.
    NotFound,
    /// It exists already, with other settings.
    Exists,
    /// The user may not do this, or is not known.
    Denied,
    /// Nobody answers at the address, or no server is known that could.
    Unreachable,
    /// The deadline passed, and the request certainly had no effect.
    Timeout,
    /// The connection broke or the deadline passed after the request was sent: it may have had its effect.
    Unknown,
    /// The server has too much to do, or cannot take writes now.
    Busy,
    /// The producer's own window is full (fail-fast producers only).
    WindowFull,
    /// The message is stored, but weaker than asked: [`Error::receipt`] says where and how.
    StoredWeaker,
    /// Another member owns the queue now.
    Fenced,
    /// The message was handed out again, or acknowledged: what this receipt says counts no more.
    BadReceipt,
    /// The offset is outside what can be read.
    OutOfRange,
    /// Members of the group subscribe differently.
    SubscriptionMismatch,
    /// A filter's expression cannot be used; the message shows where it is wrong.
    BadFilter,
    /// Stored bytes are damaged.
    Corrupt,
    /// The server does not do this (yet, or in its role).
    Unsupported,
    /// The other side does not keep to the protocol.
    Protocol,
    /// The client, producer or consumer was closed.
    Closed,
    /// The server failed; its message says how.
    Server,
}

/// An operation that failed.
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    operation: &'static str,
    target: String,
    message: String,
    status: Option<Status>,
    retry_after: Option<Duration>,
    receipt: Option<SendReceipt>,
    bounds: Option<(u64, u64)>,
    source: Option<std::sync::Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(
        kind: ErrorKind,
        operation: &'static str,
        message: impl Into<String>,
    ) -> Error {
        Error {
            inner: Box::new(Inner {
                kind,
                operation,
                target: String::new(),
                message: message.into(),
                status: None,
                retry_after: None,
                receipt: None,
                bounds: None,
                source: None,
            }),
        }
    }

    pub(crate) fn closed(operation: &'static str) -> Error {
        Error::new(ErrorKind::Closed, operation, "it was closed")
    }

    pub(crate) fn invalid(operation: &'static str, cause: impl fmt::Display) -> Error {
        Error::new(ErrorKind::Invalid, operation, cause.to_string())
    }

    pub(crate) fn protocol(operation: &'static str, cause: impl fmt::Display) -> Error {
        Error::new(ErrorKind::Protocol, operation, cause.to_string())
    }

    /// The error that a refused request's answer says.
    pub(crate) fn refused(operation: &'static str, status: Status, table: &[u8]) -> Error {
        let mut error = Error::of_status(operation, status);
        if let Ok(refusal) = frame::read_table::<Refusal<'_>>(table) {
            if let Some(message) = refusal.message() {
                error.inner.message = message.to_owned();
            }
            if refusal.retry_after_ms() > 0 {
                let pause = Duration::from_millis(u64::from(refusal.retry_after_ms()));
                error.inner.retry_after = Some(pause);
            }
            if status == Status::OffsetOutOfRange {
                error.inner.bounds = Some((refusal.min_offset(), refusal.max_offset()));
            }
        }
        error
    }

    pub(crate) fn of_status(operation: &'static str, status: Status) -> Error {
        let mut error = Error::new(kind_of(status), operation, format!("refused with {status}"));
        error.inner.status = Some(status);
        error
    }

    pub(crate) fn on(mut self, target: impl Into<String>) -> Error {
        self.inner.target = target.into();
        self
    }

    pub(crate) fn during(mut self, operation: &'static str) -> Error {
        self.inner.operation = operation;
        self
    }

    pub(crate) fn say(&mut self, message: impl Into<String>) {
        self.inner.message = message.into();
    }

    pub(crate) fn with_receipt(mut self, receipt: SendReceipt) -> Error {
        self.inner.receipt = Some(receipt);
        self
    }

    pub(crate) fn because(
        mut self,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        self.inner.source = Some(cause.into().into());
        self
    }

    /// What went wrong, coarsely.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// What was being done: `send`, `connect`, `create topic`, ...
    pub fn operation(&self) -> &'static str {
        self.inner.operation
    }

    /// To what: an address, topic, queue or group; empty when there is none.
    pub fn target(&self) -> &str {
        &self.inner.target
    }

    /// The server's status code, when a server refused.
    pub fn status(&self) -> Option<Status> {
        self.inner.status
    }

    /// Whether the same operation may succeed when it is tried again.
    pub fn is_retryable(&self) -> bool {
        match self.inner.status {
            Some(status) => status.is_retryable(),
            None => matches!(
                self.inner.kind,
                ErrorKind::Unreachable
                    | ErrorKind::Timeout
                    | ErrorKind::Unknown
                    | ErrorKind::Busy
                    | ErrorKind::WindowFull
            ),
        }
    }

    /// How long to wait before that, when the server said so.
    pub fn retry_after(&self) -> Option<Duration> {
        self.inner.retry_after
    }

    /// Where the message is stored, for [`ErrorKind::StoredWeaker`].
    pub fn receipt(&self) -> Option<&SendReceipt> {
        self.inner.receipt.as_ref()
    }

    /// The offsets that can be read, for [`ErrorKind::OutOfRange`] when the server named them.
    pub fn readable_offsets(&self) -> Option<(u64, u64)> {
        self.inner.bounds
    }
}

fn kind_of(status: Status) -> ErrorKind {
    use Status as S;
    match status {
        S::BadRequest | S::BadName | S::WrongMessageType | S::MessageTooLarge => ErrorKind::Invalid,
        S::BadRecord | S::BadChecksum => ErrorKind::Invalid,
        S::BadReceipt => ErrorKind::BadReceipt,
        S::BadFilter => ErrorKind::BadFilter,
        S::TooMany | S::OutOfSequence | S::NotReadable => ErrorKind::Invalid,
        S::UnknownTopic | S::UnknownQueue | S::UnknownGroup | S::NotFound => ErrorKind::NotFound,
        S::TopicExists | S::GroupExists => ErrorKind::Exists,
        S::Unauthenticated | S::Denied => ErrorKind::Denied,
        S::Busy | S::DiskFull | S::TooManyInFlight | S::TooManyConnections => ErrorKind::Busy,
        S::NotReady | S::NotWritable | S::NotMaster | S::ShardFailed => ErrorKind::Busy,
        S::FlushDiskTimeout | S::FlushSlaveTimeout | S::SlaveNotAvailable => {
            ErrorKind::StoredWeaker
        }
        S::OffsetOutOfRange => ErrorKind::OutOfRange,
        S::Fenced | S::UnknownMember => ErrorKind::Fenced,
        S::SubscriptionMismatch => ErrorKind::SubscriptionMismatch,
        S::Corrupt => ErrorKind::Corrupt,
        S::Unsupported | S::UnknownOpcode | S::VersionMismatch => ErrorKind::Unsupported,
        S::BadFrame | S::FrameTooLarge | S::HelloRequired => ErrorKind::Protocol,
        _ => ErrorKind::Server,
    }
}

impl Clone for Error {
    fn clone(&self) -> Error {
        Error { inner: self.inner.clone() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { operation, target, message, .. } = &*self.inner;
        match target.is_empty() {
            true => write!(f, "cannot {operation}: {message}"),
            false => write!(f, "cannot {operation} ({target}): {message}"),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.inner.kind)
            .field("operation", &self.inner.operation)
            .field("target", &self.inner.target)
            .field("message", &self.inner.message)
            .field("status", &self.inner.status)
            .field("source", &self.inner.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner.source.as_deref().map(|e| e as _)
    }
}
