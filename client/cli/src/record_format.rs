//! How `topic consume` prints a message: a format like `'%t %q %o %k %v\n'`, or JSON lines.

use ringmq::Record;
use serde::Serialize;

use crate::output::{SCHEMA, epoch_ms};

/// A parsed format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordFormat {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Topic,
    Broker,
    Queue,
    Offset,
    Keys,
    Body,
    BodyBytes,
    Tag,
    MessageId,
    StoredId,
    StoredMs,
    Properties,
    Attempt,
}

/// What stands in the help of `-f`.
pub const PLACEHOLDERS: &str = "%t topic, %b broker, %q queue, %o offset, %k keys, %v body, \
    %s body bytes, %g tag, %i message id, %I stored id, %T time stored (ms since 1970), %p properties, \
    %a delivery attempt, %% a percent sign; \\n \\t \\\\ as usual";

impl RecordFormat {
    /// Parses a format; the error names what is not known.
    pub fn parse(text: &str) -> Result<RecordFormat, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            let part = match (character, characters.as_str().chars().next()) {
                ('\\', Some(escaped)) => {
                    plain.push(match escaped {
                        'n' => '\n',
                        't' => '\t',
                        'r' => '\r',
                        '0' => '\0',
                        '\\' => '\\',
                        other => return Err(format!("\\{other} is not known: {PLACEHOLDERS}")),
                    });
                    None
                }
                ('%', Some('%')) => {
                    plain.push('%');
                    None
                }
                ('%', Some(name)) => Some(placeholder(name)?),
                ('%' | '\\', None) => {
                    return Err(format!("{character} at the end stands for nothing"));
                }
                _ => {
                    plain.push(character);
                    continue;
                }
            };
            characters.next();
            if let Some(part) = part {
                if !plain.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                }
                parts.push(part);
            }
        }
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(RecordFormat { parts })
    }

    /// Appends a message in this format; the body goes out byte for byte.
    pub fn write(&self, record: &Record, to: &mut Vec<u8>) {
        for part in &self.parts {
            match part {
                Part::Text(text) => to.extend(text.bytes()),
                Part::Topic => to.extend(record.topic().bytes()),
                Part::Broker => to.extend(record.broker().bytes()),
                Part::Queue => to.extend(record.queue().id.to_string().bytes()),
                Part::Offset => to.extend(record.offset().to_string().bytes()),
                Part::Keys => to.extend(record.keys().join(" ").bytes()),
                Part::Body => to.extend(record.body()),
                Part::BodyBytes => to.extend(record.body().len().to_string().bytes()),
                Part::Tag => to.extend(record.tag().unwrap_or_default().bytes()),
                Part::MessageId => to.extend(record.message_id().to_string().bytes()),
                Part::StoredId => to.extend(record.stored_id().to_string().bytes()),
                Part::StoredMs => to.extend(epoch_ms(record.stored_at()).to_string().bytes()),
                Part::Attempt => to.extend(record.delivery_attempt().to_string().bytes()),
                Part::Properties => {
                    let pairs = record.properties();
                    let pairs: Vec<String> =
                        pairs.iter().map(|(k, v)| format!("{k}={v}")).collect();
                    to.extend(pairs.join(" ").bytes());
                }
            }
        }
    }
}

fn placeholder(name: char) -> Result<Part, String> {
    Ok(match name {
        't' => Part::Topic,
        'b' => Part::Broker,
        'q' => Part::Queue,
        'o' => Part::Offset,
        'k' => Part::Keys,
        'v' => Part::Body,
        's' => Part::BodyBytes,
        'g' => Part::Tag,
        'i' => Part::MessageId,
        'I' => Part::StoredId,
        'T' => Part::StoredMs,
        'p' => Part::Properties,
        'a' => Part::Attempt,
        other => return Err(format!("%{other} is not known: {PLACEHOLDERS}")),
    })
}

/// A message in JSON. A body that is no text is given in hexadecimal.
#[derive(Debug, Serialize)]
pub struct JsonRecord<'a> {
    topic: &'a str,
    broker: &'a str,
    queue: u32,
    offset: u64,
    message_id: String,
    stored_id: String,
    tag: Option<&'a str>,
    keys: Vec<&'a str>,
    properties: std::collections::BTreeMap<&'a str, &'a str>,
    group: Option<&'a str>,
    born_ms: u64,
    stored_ms: u64,
    delivery_attempt: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<JsonOrigin>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<&'a str>,
    body_bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_hex: Option<String>,
}

/// Where a message was first that was sent back.
#[derive(Debug, Serialize)]
struct JsonOrigin {
    topic: String,
    queue: u32,
    offset: u64,
}

impl<'a> JsonRecord<'a> {
    /// Of a message.
    pub fn new(record: &'a Record) -> JsonRecord<'a> {
        let body = std::str::from_utf8(record.body()).ok();
        let hex = || record.body().iter().map(|byte| format!("{byte:02x}")).collect();
        JsonRecord {
            topic: record.topic(),
            broker: record.broker(),
            queue: record.queue().id,
            offset: record.offset(),
            message_id: record.message_id().to_string(),
            stored_id: record.stored_id().to_string(),
            tag: record.tag(),
            keys: record.keys(),
            properties: record.properties().into_iter().collect(),
            group: record.group(),
            born_ms: epoch_ms(record.born_at()),
            stored_ms: epoch_ms(record.stored_at()),
            delivery_attempt: record.delivery_attempt(),
            origin: record.origin().map(|origin| JsonOrigin {
                topic: origin.queue.topic.to_string(),
                queue: origin.queue.id,
                offset: origin.offset,
            }),
            last_error: record.last_error(),
            body_bytes: record.body().len(),
            body_hex: body.is_none().then(hex),
            body,
        }
    }
}

#[derive(Serialize)]
struct JsonLine<'a> {
    schema: u32,
    #[serde(flatten)]
    record: JsonRecord<'a>,
}

/// Appends a message as a line of JSON.
pub fn write_json(record: &Record, to: &mut Vec<u8>) {
    let line = JsonLine { schema: SCHEMA, record: JsonRecord::new(record) };
    serde_json::to_writer(&mut *to, &line).expect("strings and numbers always serialise");
    to.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_parsed() {
        let format = RecordFormat::parse("%t/%q\\t100%% %v\\n").unwrap();
        let expected = [
            Part::Topic,
            Part::Text("/".into()),
            Part::Queue,
            Part::Text("\t100% ".into()),
            Part::Body,
            Part::Text("\n".into()),
        ];
        assert_eq!(format.parts, expected);
    }

    #[test]
    fn unknown_placeholders_are_named() {
        assert!(RecordFormat::parse("%x").unwrap_err().contains("%x is not known"));
        assert!(RecordFormat::parse("\\q").is_err());
        assert!(RecordFormat::parse("50%").unwrap_err().contains("at the end"));
    }
}
