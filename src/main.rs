//! The command `sconce`.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    sconce::backend::forbid_telemetry();
    sconce::cli::run(std::env::args_os())
}
