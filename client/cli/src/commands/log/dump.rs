//! `log dump`: the records of one segment, a line each.

use std::fs;
use std::io::{self, BufWriter, Write as _};
use std::ops::ControlFlow;

use indicatif::ProgressBar;
use ringmq_core::SegmentFile;
use ringmq_core::offline::{Check, Event, Walk};
use ringmq_schema::record::{Kind, RecordRef};
use serde::Serialize;

use super::directory::{failure, segment_base};
use super::scan;
use crate::args::{Dump, Global};
use crate::failure::Failure;
use crate::output::{Form, SCHEMA, utc};

const HEADING: &str = "POSITION KIND EPOCH BYTES TOPIC QUEUE OFFSET STORED ID TAG\n";

#[derive(Serialize, Default)]
struct Line {
    schema: u32,
    position: u64,
    kind: String,
    length_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u32>,
    /// In a damaged unit; whole by its own checksums.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    in_damage: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    damage: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    store_ms: Option<i64>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    message: Option<MessagePart>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    unit: Option<UnitPart>,
}

#[derive(Serialize)]
struct MessagePart {
    topic_id: u32,
    queue: u32,
    offset: u64,
    message_id: String,
    tag_hash: u32,
}

#[derive(Serialize)]
struct UnitPart {
    log_id: String,
    shard: u32,
    durable_position: u64,
}

pub(super) fn run(args: &Dump, global: &Global) -> Result<(), Failure> {
    let path = &args.segment;
    let metadata = fs::metadata(path).map_err(|error| failure(path, &error))?;
    let Some(base) = segment_base(path).filter(|_| metadata.is_file()) else {
        return Err(Failure::usage(
            format!("{} is no segment", path.display()),
            "a file DIR/shard-NNNN/<20 digits>.log; `ringmq log inspect DIR` shows which there are",
        ));
    };
    let bytes = metadata.len();
    let end = base.saturating_add(bytes);
    if args.from != 0 && !(base..end).contains(&args.from) {
        return Err(Failure::usage(
            format!("position {} is not in this segment ({base} to {end})", args.from),
            "the segment whose name is the highest number up to that position",
        ));
    }
    let mut walk = Walk::new(None, Check::Everything);
    let mut out = Lines {
        out: BufWriter::with_capacity(64 << 10, io::stdout().lock()),
        form: global.output,
        from: args.from,
        left: args.limit.unwrap_or(u64::MAX),
        failed: None,
        epoch: 0,
        damages: Vec::new(),
    };
    out.begin()?;
    let file = SegmentFile { base, bytes };
    // A limit ends the walk early; nothing is wrong then.
    let _ = scan::segment(&mut walk, file, path, &ProgressBar::hidden(), &mut |e| out.event(&e))?;
    if let Some(error) = out.failed.take() {
        return Err(error.into());
    }
    out.out.flush()?;
    let interior = out.damages.iter().filter(|&&from| from < walk.flushed()).count();
    if interior == 0 {
        return Ok(());
    }
    Err(Failure::new(
        format!(
            "{} below the durable end {}",
            scan::counted(interior, "damaged place"),
            walk.flushed()
        ),
        "`ringmq log verify` on the shard's folder says what is lost",
    ))
}

struct Lines<W: io::Write> {
    out: W,
    form: Form,
    from: u64,
    left: u64,
    failed: Option<io::Error>,
    epoch: u32,
    damages: Vec<u64>,
}

impl<W: io::Write> Lines<W> {
    fn begin(&mut self) -> io::Result<()> {
        match self.form {
            Form::Json => Ok(()),
            Form::Table | Form::Wide => self.out.write_all(HEADING.as_bytes()),
        }
    }

    fn event(&mut self, event: &Event<'_>) -> ControlFlow<()> {
        if let Event::Unit { header } = event {
            self.epoch = header.epoch.get();
        }
        let Some(line) = self.line(event) else { return ControlFlow::Continue(()) };
        // Damage counts where it reaches, all else where it begins.
        let before = match line.damage {
            Some(_) => line.position + line.length_bytes <= self.from,
            None => line.position < self.from,
        };
        if before {
            return ControlFlow::Continue(());
        }
        if self.left == 0 {
            return ControlFlow::Break(());
        }
        self.left -= 1;
        if line.damage.is_some() {
            self.damages.push(line.position);
        }
        if let Err(error) = write(&mut self.out, self.form, &line) {
            self.failed = Some(error);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    /// How an event is listed; `None`: not in this form.
    fn line(&self, event: &Event<'_>) -> Option<Line> {
        let wide = self.form == Form::Wide;
        let control = |position, kind: &str, length_bytes| Line {
            schema: SCHEMA,
            position,
            kind: kind.to_owned(),
            length_bytes,
            epoch: Some(self.epoch),
            ..Line::default()
        };
        match *event {
            Event::Record { position, record, sound } => Some(of_record(position, &record, sound)),
            Event::Damage(damage) => Some(Line {
                epoch: None,
                damage: Some(damage.what),
                ..control(damage.from, "damage", damage.to - damage.from)
            }),
            Event::Unit { header } if wide => Some(Line {
                unit: Some(UnitPart {
                    log_id: format!("{:016x}", header.log_id),
                    shard: header.shard.get(),
                    durable_position: header.flushed.get(),
                }),
                ..control(header.position.get(), "unit", u64::from(header.unit_bytes.get()))
            }),
            Event::Padding { position, bytes } if wide => Some(control(position, "pad", bytes)),
            Event::Seal { position, bytes, .. } if wide => Some(control(position, "seal", bytes)),
            Event::Free { from, to } if wide => {
                Some(Line { epoch: None, ..control(from, "free", to - from) })
            }
            _ => None,
        }
    }
}

fn of_record(position: u64, record: &RecordRef<'_>, sound: bool) -> Line {
    let header = record.header;
    let kind = Kind::from_code(header.prefix.kind);
    let message = (kind == Some(Kind::Message)).then(|| MessagePart {
        topic_id: header.topic.get(),
        queue: header.queue.get(),
        offset: header.offset.get(),
        message_id: ringmq::MessageId(header.message_id).to_string(),
        tag_hash: header.tag_hash.get(),
    });
    Line {
        schema: SCHEMA,
        position,
        kind: kind.map_or_else(String::new, |kind| format!("{kind:?}").to_lowercase()),
        length_bytes: record.bytes.len() as u64,
        epoch: Some(header.epoch.get()),
        in_damage: !sound,
        store_ms: Some(header.store_ms.get()),
        message,
        ..Line::default()
    }
}

fn write(out: &mut impl io::Write, form: Form, line: &Line) -> io::Result<()> {
    if form == Form::Json {
        serde_json::to_writer(&mut *out, line)?;
        return out.write_all(b"\n");
    }
    write!(out, "{} {}", line.position, line.kind)?;
    if let Some(what) = line.damage {
        return writeln!(out, " {} bytes: {what}", line.length_bytes);
    }
    match line.epoch {
        Some(epoch) => write!(out, " {epoch} {}", line.length_bytes)?,
        None => write!(out, " - {}", line.length_bytes)?,
    }
    if let Some(unit) = &line.unit {
        let UnitPart { log_id, shard, durable_position } = unit;
        return writeln!(out, " log {log_id} shard {shard} durable to {durable_position}");
    }
    let stored = line.store_ms.map_or_else(|| "-".to_owned(), utc);
    match &line.message {
        Some(message) => write!(
            out,
            " {} {} {} {stored} {} {:08x}",
            message.topic_id, message.queue, message.offset, message.message_id, message.tag_hash
        )?,
        None => write!(out, " - - - {stored} - -")?,
    }
    out.write_all(if line.in_damage { b" (in a damaged unit)\n" } else { b"\n" })
}
