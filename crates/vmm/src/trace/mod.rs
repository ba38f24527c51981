// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--trace FILE`: what crosses the joint between guest and host, with times.
//!
//! `FILE` gets one JSON object a line, `FILE.trace.json` the same for trace viewers (Perfetto, chrome://tracing). Both
//! are written as things happen, whole objects at a time, so they can be read while the machine runs and after it was
//! killed: the array of the second file lacks its closing bracket then, which the format allows.
//!
//! The files are opened first and emptied when the machine is built, so that one that cannot be built changes none.
//!
//! The remapping unit does not wait for a disk: events go through a channel of bounded size to a thread that writes.
//! Those that find it full are counted, and both files say where how many are missing.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use vsva::{Event, Tracer};
use vtd_spec::SourceId;

use self::line::{Line, What};
use self::spans::Spans;
use crate::output_file::OutputFile;

mod line;
mod spans;
#[cfg(test)]
mod tests;

/// The version of the lines' format, in the first of them.
const FORMAT: u32 = 1;
/// Events on their way to the writer.
const CAPACITY: usize = 1 << 14;
/// Bytes collected before they are written although more events wait.
const CHUNK: usize = 1 << 16;

/// Why there is no trace. One line each.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be created.
    #[error("cannot create the trace {0}: {1}")]
    Create(PathBuf, io::Error),
    /// A file could not be written to its end.
    #[error("the trace {0} is not complete: {1}")]
    Write(PathBuf, io::Error),
    /// There is no thread for it.
    #[error("cannot start the thread that writes the trace: {0}")]
    Thread(io::Error),
}

/// What a trace holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Events that were written.
    pub events: u64,
    /// Events that were not, because they came too fast.
    pub dropped: u64,
}

/// The file for trace viewers that goes with a file of lines: its name with `.trace.json` added.
pub fn viewer_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".trace.json");
    name.into()
}

/// A trace to come. Dropped before it starts, it leaves the files as they were.
pub struct Trace {
    path: PathBuf,
    lines: OutputFile,
    viewer: OutputFile,
    recorder: Arc<Recorder>,
    receiver: Receiver<Message>,
}

impl Trace {
    /// Opens both files and starts the clock.
    ///
    /// # Errors
    ///
    /// A file cannot be opened or created.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let open = |path: &Path| OutputFile::open(path).map_err(|e| Error::Create(path.to_owned(), e));
        let (lines, viewer) = (open(path)?, open(&viewer_path(path))?);
        let (recorder, receiver) = Recorder::new(CAPACITY);
        Ok(Self { path: path.to_owned(), lines, viewer, recorder: Arc::new(recorder), receiver })
    }

    /// Who is to hear of events. Those that come before the start are kept, up to a bounded number.
    pub fn tracer(&self) -> Arc<dyn Tracer> {
        Arc::clone(&self.recorder) as Arc<dyn Tracer>
    }

    /// Empties both files and begins to write.
    ///
    /// # Errors
    ///
    /// A file cannot be written, or there is no thread for it.
    pub fn start(self) -> Result<Recording, Error> {
        let Self { path, lines, viewer, recorder, receiver } = self;
        let keep = |file: OutputFile| file.keep().map_err(|e| Error::Create(path.clone(), e));
        let writer = Writer::new(keep(lines)?, keep(viewer)?, &recorder);
        let writer = thread::Builder::new()
            .name("trace".into())
            .spawn(move || writer.run(&receiver))
            .map_err(Error::Thread)?;
        Ok(Recording { path, recorder, writer })
    }
}

/// A trace that is being written.
pub struct Recording {
    path: PathBuf,
    recorder: Arc<Recorder>,
    writer: JoinHandle<(Summary, io::Result<()>)>,
}

impl Recording {
    /// Ends both files. What happens later is not recorded.
    ///
    /// # Errors
    ///
    /// Something could not be written.
    pub fn finish(self) -> Result<Summary, Error> {
        self.recorder.end();
        let failed = |e| Error::Write(self.path.clone(), e);
        match self.writer.join() {
            Ok((summary, Ok(()))) => Ok(summary),
            Ok((_, Err(error))) => Err(failed(error)),
            Err(_) => Err(failed(io::Error::other("internal error: the thread that writes it panicked"))),
        }
    }
}

enum Message {
    Event(Duration, SourceId, Event),
    End(Duration),
}

/// The end where events come in.
struct Recorder {
    start: Instant,
    /// Microseconds since 1970 at the start.
    unix_us: u64,
    sender: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
    /// Set once the end has been sent.
    ended: Mutex<bool>,
}

impl Recorder {
    fn new(capacity: usize) -> (Self, Receiver<Message>) {
        let (sender, receiver) = sync_channel(capacity);
        let unix_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64);
        let start = Instant::now();
        let recorder = Self { start, unix_us, sender, dropped: Arc::default(), ended: Mutex::default() };
        (recorder, receiver)
    }

    fn end(&self) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut *ended, true) {
            // Waits for a place in the channel; fails if the writer has gone already.
            let _ = self.sender.send(Message::End(self.start.elapsed()));
        }
    }
}

impl Tracer for Recorder {
    fn event(&self, function: SourceId, event: &Event) {
        let message = Message::Event(self.start.elapsed(), function, event.clone());
        if self.sender.try_send(message).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The end where they are written.
struct Writer<L, V> {
    lines: Output<L>,
    viewer: Output<V>,
    spans: Spans,
    unix_us: u64,
    written: u64,
    dropped: Arc<AtomicU64>,
    /// How many of the dropped ones the files tell of.
    told: u64,
}

impl<L: Write, V: Write> Writer<L, V> {
    fn new(lines: L, viewer: V, recorder: &Recorder) -> Self {
        let (lines, viewer) = (Output::new(lines), Output::new(viewer));
        let (unix_us, dropped) = (recorder.unix_us, Arc::clone(&recorder.dropped));
        Self { lines, viewer, spans: Spans::default(), unix_us, written: 0, dropped, told: 0 }
    }

    /// Writes until the end.
    fn run(mut self, receiver: &Receiver<Message>) -> (Summary, io::Result<()>) {
        self.line(Duration::ZERO, None, &What::Start { format: FORMAT, unix_us: self.unix_us });
        let end = loop {
            let message = match receiver.try_recv() {
                Ok(message) => message,
                Err(TryRecvError::Empty) => {
                    self.flush();
                    match receiver.recv() {
                        Ok(message) => message,
                        Err(_) => break Duration::ZERO,
                    }
                }
                Err(TryRecvError::Disconnected) => break Duration::ZERO,
            };
            match message {
                Message::Event(at, function, event) => self.event(at, function, &event),
                Message::End(at) => break at,
            }
        };
        let summary = self.end(end);
        (summary, self.lines.result.and(self.viewer.result))
    }

    fn event(&mut self, at: Duration, function: SourceId, event: &Event) {
        self.tell_of_dropped(at);
        let bound = match event {
            Event::Invalidate(invalidation) => self.spans.guest(function, invalidation.pasid),
            _ => None,
        };
        let what = What::new(event, bound);
        self.line(at, Some(function), &what);
        self.spans.event(at, function, event, &what, &mut self.viewer.buffer);
        self.written += 1;
        if self.lines.buffer.len().max(self.viewer.buffer.len()) >= CHUNK {
            self.flush();
        }
    }

    fn tell_of_dropped(&mut self, at: Duration) {
        let dropped = self.dropped.load(Ordering::Relaxed);
        if dropped != self.told {
            let what = What::Dropped { events: dropped - self.told };
            self.line(at, None, &what);
            self.spans.dropped(at, &what, &mut self.viewer.buffer);
            self.told = dropped;
        }
    }

    fn end(&mut self, at: Duration) -> Summary {
        self.tell_of_dropped(at);
        let summary = Summary { events: self.written, dropped: self.told };
        self.line(at, None, &What::End { events: summary.events, dropped: summary.dropped });
        self.spans.finish(at, &mut self.viewer.buffer);
        self.flush();
        summary
    }

    fn line(&mut self, at: Duration, function: Option<SourceId>, what: &What) {
        let function = function.map(|function| function.to_string());
        append(&Line { us: microseconds(at), function, what }, &mut self.lines.buffer);
        self.lines.buffer.push(b'\n');
    }

    fn flush(&mut self) {
        self.lines.flush();
        self.viewer.flush();
    }
}

/// A file, and whole objects that it is to get.
struct Output<W> {
    file: W,
    buffer: Vec<u8>,
    /// The first failure: nothing is written after it.
    result: io::Result<()>,
}

impl<W: Write> Output<W> {
    fn new(file: W) -> Self {
        Self { file, buffer: Vec::new(), result: Ok(()) }
    }

    fn flush(&mut self) {
        if self.result.is_ok() {
            self.result = self.file.write_all(&self.buffer);
        }
        self.buffer.clear();
    }
}

/// With all digits that a nanosecond clock has.
fn microseconds(at: Duration) -> f64 {
    at.as_nanos() as f64 / 1000.0
}

fn append(object: &impl Serialize, out: &mut Vec<u8>) {
    // Strings, numbers and structures of them: there is nothing that could fail, and an array does not run full.
    if let Err(error) = serde_json::to_writer(out, object) {
        tracing::error!(%error, "an object of the trace is lost");
    }
}
