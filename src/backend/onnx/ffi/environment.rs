//! The one thing that has to be said to ONNX Runtime before it is loaded.

/// Keeps ONNX Runtime from collecting and sending telemetry: version 1.31 writes a database into the home folder and knows
/// an address to send it to, whatever `with_telemetry(false)` says. Called first thing by `main`, while there is one thread.
pub fn forbid_telemetry() {
    let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    assert_eq!(threads, 1, "the environment can be changed by the only thread alone: this is a bug");
    #[expect(clippy::disallowed_methods, reason = "the library reads it from the environment and from nowhere else")]
    // SAFETY: no other thread reads or writes the environment, for there is none: just counted.
    unsafe {
        std::env::set_var("ORT_DISABLE_TELEMETRY", "1");
    }
}
