//! Logs: text or JSON to stderr, one event a line whatever its fields hold.
//!
//! Callers' words (names, ids, metadata) reach the log as field values. Control characters in them, line ends and
//! terminal sequences above all, are written as escapes, so nobody can forge a line or steer an operator's terminal.

use std::{
    fmt::Write as _,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use tracing_subscriber::{
    EnvFilter, Layer, Registry, fmt::MakeWriter, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

/// How an event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Text,
    Json,
}

/// Changes what is logged while the server runs.
#[derive(Clone, Debug)]
pub struct Level {
    handle: reload::Handle<EnvFilter, Registry>,
    /// As it was written.
    now: Arc<Mutex<String>>,
}

/// Makes writers that escape what the writers of `M` are given.
struct Escaping<M>(M);

struct EscapingWriter<W>(W);

/// Sends the process's events to stderr. Once a process.
pub fn init(format: Format, level: &str) -> Result<Level, String> {
    let filter = filter(level).map_err(|error| error.to_string())?;
    let (filter, handle) = reload::Layer::new(filter);
    tracing_subscriber::registry()
        .with(filter)
        .with(layer(format, io::stderr))
        .try_init()
        .map_err(|error| error.to_string())?;
    Ok(Level::new(handle, level))
}

/// What `init` and `Level::set` would say to this filter.
pub fn check_level(level: &str) -> Result<(), String> {
    const WORDS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_word = |part: &&str| part.contains('=') || WORDS.iter().any(|word| word.eq_ignore_ascii_case(part.trim()));
    // The library takes any other word for a part of the program, of which it would then show all, and of the rest nothing.
    if let Some(part) = level.split(',').find(|part| !is_word(part)) {
        return Err(format!(
            "'{part}' is no level: write off, error, warn, info, debug or trace, or PART=LEVEL as in sconce::lifecycle=debug"
        ));
    }
    filter(level).map(drop).map_err(|error| format!("{error}; write e.g. info or info,sconce::lifecycle=debug"))
}

/// The client of buckets tells of each try at `info`; what is worth saying of them, `store` says. Who names it hears it.
fn filter(level: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    const NOISY: &str = "object_store";
    EnvFilter::try_new(match level.contains(NOISY) {
        true => level.to_owned(),
        false => format!("{level},{NOISY}=warn"),
    })
}

/// The text with its control characters as escapes; those of JSON, so that a JSON line stays one.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            _ if breaks_or_steers(character) => {
                // All of them lie in the basic plane, so four digits do.
                let _ = write!(escaped, "\\u{:04x}", u32::from(character));
            }
            _ => escaped.push(character),
        }
    }
    escaped
}

// === impl Level ===

impl Level {
    fn new(handle: reload::Handle<EnvFilter, Registry>, level: &str) -> Self {
        Self { handle, now: Arc::new(Mutex::new(level.to_owned())) }
    }

    /// What is logged now.
    pub fn now(&self) -> String {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns what was logged until now.
    pub fn set(&self, level: &str) -> Result<String, String> {
        check_level(level)?;
        let filter = filter(level).map_err(|error| error.to_string())?;
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        self.handle.reload(filter).map_err(|error| error.to_string())?;
        Ok(std::mem::replace(&mut now, level.to_owned()))
    }
}

// === impl Escaping ===

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for Escaping<M> {
    type Writer = EscapingWriter<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        EscapingWriter(self.0.make_writer())
    }
}

// === impl EscapingWriter ===

impl<W: io::Write> io::Write for EscapingWriter<W> {
    /// Takes a whole event: the formatter writes each with one call, and only its last line end is ours.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = String::from_utf8_lossy(event);
        let line = escape(line.strip_suffix('\n').unwrap_or(&line)) + "\n";
        self.0.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The formatting layer. Fields of the enclosing spans (`trace_id` of the edge) stand in every event.
fn layer<S, M>(format: Format, writer: M) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'span> tracing_subscriber::registry::LookupSpan<'span>,
    M: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(Escaping(writer));
    match format {
        Format::Text => layer.boxed(),
        Format::Json => layer.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
    }
}

/// Control characters (C0, DEL, C1), Unicode's own line ends, and what reverses the direction of a line.
fn breaks_or_steers(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const NASTY: &str = "a\nINFO forged\r\u{1b}[2Jb\u{85}c\u{2028}d\u{202e}e\0f";

    fn logged(format: Format, event: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::registry().with(layer(format, move || writer.clone()));
        tracing::subscriber::with_default(subscriber, event);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).expect("the log is UTF-8")
    }

    fn nasty_event() {
        let span = tracing::info_span!("call", trace_id = %NASTY);
        span.in_scope(|| tracing::info!(model = %NASTY, request_id = NASTY, "refused {NASTY}"));
    }

    #[test]
    fn text_is_one_line_whatever_the_fields_hold() {
        let line = logged(Format::Text, nasty_event);
        assert_eq!(line.matches('\n').count(), 1, "{line}");
        assert!(line.ends_with('\n'));
        assert!(!line.trim_end_matches('\n').chars().any(breaks_or_steers), "{line}");
        assert!(line.contains("model=a\\nINFO forged\\r\\u001b[2Jb\\u0085c\\u2028d\\u202ee\\u0000f"), "{line}");
    }

    #[test]
    fn a_word_that_is_no_level_is_named() {
        for level in ["info", "WARN", "off", "info,sconce::lifecycle=debug", "sconce=trace"] {
            assert_eq!(check_level(level), Ok(()), "{level}");
        }
        for level in ["wran", "info,foo", "sconce::x=blah", ""] {
            assert!(check_level(level).is_err(), "{level}");
        }
    }

    #[test]
    fn json_is_one_line_that_reads_back() {
        let line = logged(Format::Json, nasty_event);
        assert_eq!(line.matches('\n').count(), 1, "{line}");
        let event: serde_json::Value = serde_json::from_str(&line).expect("the line is JSON");
        assert_eq!(event["model"], NASTY);
        assert_eq!(event["span"]["trace_id"], NASTY);
        assert_eq!(event["level"], "INFO");
    }

    #[test]
    fn the_level_changes_while_events_come() {
        let (filter, handle) = reload::Layer::new(EnvFilter::new("warn"));
        let level = Level::new(handle, "warn");
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::registry().with(filter).with(layer(Format::Text, move || writer.clone()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("first");
            assert_eq!(level.set("info").as_deref(), Ok("warn"));
            assert_eq!(level.now(), "info");
            tracing::info!("second");
            assert!(level.set("sconce=loud").is_err());
        });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).expect("the log is UTF-8");
        assert!(!text.contains("first") && text.contains("second"), "{text}");
    }
}
