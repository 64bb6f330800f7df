//! Errors made for the person at the terminal: what failed, why, and what to try.

use std::io;
use std::process::ExitCode;

use ringmq::ErrorKind;

/// How the program ends. A contract with scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Nothing is wrong: the reader of our output has enough.
    Done = 0,
    /// It was tried and failed.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// No such topic, group, broker.
    NotFound = 3,
    /// Not allowed.
    Denied = 4,
    /// Nobody answers, or not in time.
    Unreachable = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// A command that did not succeed.
#[derive(Debug)]
pub struct Failure {
    /// How the program ends.
    pub exit: Exit,
    /// What failed and why.
    pub message: String,
    /// What to try.
    pub advice: String,
}

impl Failure {
    /// An ordinary failure.
    pub fn new(message: impl Into<String>, advice: impl Into<String>) -> Failure {
        Failure { exit: Exit::Failed, message: message.into(), advice: advice.into() }
    }

    /// A command line that makes no sense.
    pub fn usage(message: impl Into<String>, advice: impl Into<String>) -> Failure {
        Failure { exit: Exit::Usage, ..Failure::new(message, advice) }
    }

    /// Something that is not there.
    pub fn not_found(message: impl Into<String>, advice: impl Into<String>) -> Failure {
        Failure { exit: Exit::NotFound, ..Failure::new(message, advice) }
    }

    /// A failure of the servers that `dev` and `quickstart` start; their errors say the remedy themselves.
    pub fn of_servers(error: &anyhow::Error) -> Failure {
        Failure::new(format!("{error:#}"), String::new())
    }

    /// Prints it to stderr, two lines at most for simple ones. `quiet` leaves the advice out.
    pub fn show(&self, quiet: bool) {
        if self.exit == Exit::Done {
            return;
        }
        eprintln!("error: {}", self.message);
        if !quiet && !self.advice.is_empty() {
            eprintln!("try: {}", self.advice);
        }
    }
}

impl From<ringmq::Error> for Failure {
    fn from(error: ringmq::Error) -> Failure {
        let (exit, advice) = advise(error.kind());
        Failure { exit, message: chain(&error), advice: advice.to_owned() }
    }
}

fn advise(kind: ErrorKind) -> (Exit, &'static str) {
    use ErrorKind as K;
    match kind {
        K::NotFound => {
            (Exit::NotFound, "`ringmq topic ls` and `ringmq group ls` show what is there")
        }
        K::Denied => (Exit::Denied, "ask who runs the cluster for the right to do this"),
        K::Unreachable => (
            Exit::Unreachable,
            "is the cluster up? `ringmq dev` starts one here; --namesrv HOST:PORT (or NAMESRV_ADDR) \
             names another",
        ),
        K::Timeout | K::Unknown => (
            Exit::Unreachable,
            "again, with a longer --timeout; `ringmq cluster status` shows who answers",
        ),
        K::Busy | K::WindowFull => {
            (Exit::Failed, "again in a moment; `ringmq cluster status` shows why")
        }
        K::Invalid => (Exit::Failed, "change what the message names; --help shows what is allowed"),
        K::Exists => {
            (Exit::Failed, "`ringmq topic describe` shows its settings, `topic alter` changes them")
        }
        K::SubscriptionMismatch => {
            (Exit::Failed, "`ringmq group members` shows the subscriptions; use another --group")
        }
        K::BadFilter => (
            Exit::Usage,
            "\"region = 'eu' AND amount > 100\": strings in single quotes, names of properties in none",
        ),
        K::Fenced => (
            Exit::Failed,
            "stop the group's consumers first; `ringmq group members GROUP` shows them",
        ),
        K::Unsupported => (Exit::Failed, "compare the versions of client and servers"),
        _ => (Exit::Failed, "-v shows more; the servers' logs may say why"),
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe {
            // `ringmq ... | head`: the reader has enough.
            return Failure { exit: Exit::Done, message: String::new(), advice: String::new() };
        }
        Failure::new(error.to_string(), "check the file or terminal that is read or written")
    }
}

/// An error and its causes in one line; a cause that the text already quotes is not said again.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_contract() {
        assert_eq!(advise(ErrorKind::NotFound).0 as u8, 3);
        assert_eq!(advise(ErrorKind::Denied).0 as u8, 4);
        assert_eq!(advise(ErrorKind::Unreachable).0 as u8, 5);
        assert_eq!(advise(ErrorKind::Timeout).0 as u8, 5);
        assert_eq!(advise(ErrorKind::Server).0 as u8, 1);
        assert_eq!(Failure::usage("", "").exit as u8, 2);
    }

    #[test]
    fn a_reader_that_has_enough_is_no_failure() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(failure.exit, Exit::Done);
    }
}
