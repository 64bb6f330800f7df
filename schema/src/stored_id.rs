//! What a message is called after where it is stored: shard and position in the shard's log. Together with the
//! broker's name, which is known from the context, nothing else in the cluster is ever called so (RocketMQ users
//! know it as `offsetMsgId`).

use std::fmt;
use std::str::FromStr;

/// Where a message lies on a broker. As text `0003-00000000000a1b2c`: shard and position in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoredId {
    /// The shard.
    pub shard: u16,
    /// Position in its log.
    pub position: u64,
}

/// Text that is no [`StoredId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no stored id: four hexadecimal digits, a hyphen, and sixteen more are expected")]
pub struct StoredIdError(pub String);

impl fmt::Display for StoredId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}-{:016x}", self.shard, self.position)
    }
}

impl FromStr for StoredId {
    type Err = StoredIdError;

    fn from_str(text: &str) -> Result<StoredId, StoredIdError> {
        let fault = || StoredIdError(text.to_owned());
        let digits = |part: &str, count: usize| {
            let all = part.len() == count && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            all.then(|| u64::from_str_radix(part, 16).ok()).flatten().ok_or_else(fault)
        };
        let (shard, position) = text.split_once('-').ok_or_else(fault)?;
        let shard = u16::try_from(digits(shard, 4)?).map_err(|_| fault())?;
        Ok(StoredId { shard, position: digits(position, 16)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for (shard, position) in [(0, 0), (3, 0xa1b2c), (u16::MAX, u64::MAX)] {
            let id = StoredId { shard, position };
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        let id = StoredId { shard: 3, position: 0xa1b2c };
        assert_eq!(id.to_string(), "0003-00000000000a1b2c");
        assert_eq!("0003-00000000000A1B2C".parse(), Ok(id));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "-",
            "0003",
            "3-00000000000a1b2c",
            "0003-a1b2c",
            "0003-00000000000a1b2g",
            "+003-00000000000a1b2c",
            "0003-00000000000a1b2c-",
            "0003-00000000000a1b2c0",
            "01934f00-0000-7000-8000-000000000001",
        ] {
            assert_eq!(text.parse::<StoredId>(), Err(StoredIdError(text.to_owned())));
        }
    }
}
