//! A file that a command reads through to its end.

use std::{
    fs::File,
    io::{Read, stdin},
    path::Path,
};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

/// The input, and a bar that follows how much of it was read. The bar shows on a terminal alone.
pub fn open(file: &Path) -> anyhow::Result<(Box<dyn Read>, ProgressBar)> {
    if file == Path::new("-") {
        let bar = ProgressBar::new_spinner();
        return Ok((Box::new(bar.wrap_read(stdin())), bar));
    }
    let opened = File::open(file).with_context(|| file.display().to_string())?;
    let bar = ProgressBar::new(opened.metadata()?.len());
    let style = ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}  {elapsed}, {eta} left")?;
    bar.set_style(style);
    Ok((Box::new(bar.wrap_read(opened)), bar))
}
