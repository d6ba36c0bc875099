//! From libtorch's pages of C++ and Python traces to the sentence that a caller can use.
//!
//! Kept: the last line that names an error (`RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x5 and 4x3)`), and where
//! there is none the first lines. Left out: what `message` masks, and the traces. Pure.

use crate::backend::message::shortened;

const LINES_MAX: usize = 3;

/// Where libtorch has said what it knows and begins to say what it always says.
const TAILS: [&str; 4] = [
    "Exception raised from",
    "This is an internal miniz error",
    "(Could this error message be improved",
    "please report a bug to PyTorch",
];

/// One short line, made fit for a caller.
pub fn sentence(text: &str) -> String {
    let text = TAILS.iter().fold(text, |text, tail| text.split(tail).next().unwrap_or_default());
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| is_telling(line)).collect();
    let from = lines.iter().rposition(|line| names_an_error(line)).unwrap_or(0);
    let told = lines.iter().skip(from).take(LINES_MAX).copied().collect::<Vec<_>>();
    match shortened(&told.join(" ")) {
        told if told.is_empty() => "the library gave no reason".into(),
        told => told,
    }
}

/// Frames of a trace, their marks, and the sentence that precedes every trace tell nothing.
fn is_telling(line: &str) -> bool {
    !(line.is_empty()
        || line.starts_with("File \"")
        || line.starts_with("Traceback of TorchScript")
        || line.starts_with("The following operation failed in the TorchScript interpreter")
        || line.starts_with("frame #")
        || line.chars().all(|character| matches!(character, '~' | '<' | '-' | ' ' | 'H' | 'E' | 'R' | '.')))
}

/// `RuntimeError: …`, `builtins.ValueError: …`
fn names_an_error(line: &str) -> bool {
    line.split_once(": ")
        .is_some_and(|(word, _)| !word.contains(' ') && (word.ends_with("Error") || word.ends_with("Exception")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_names_the_shapes_is_kept() {
        let text = "The following operation failed in the TorchScript interpreter.\n\
            Traceback of TorchScript, serialized code (most recent call last):\n\
            \x20 File \"code/__torch__/m.py\", line 9, in forward\n    return torch.linear(x, w)\n           ~~~~~~~~~~~~ <--- HERE\n\n\
            Traceback of TorchScript, original code (most recent call last):\n\
            \x20 File \"/home/ann/train.py\", line 4, in forward\n    return self.l(x)\n\
            RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x5 and 4x3)\n";
        assert_eq!(sentence(text), "RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x5 and 4x3)");
    }

    #[test]
    fn paths_pointers_and_the_trace_are_left_out() {
        let text = "open file failed because of errno 2 on fopen: No such file or directory, file path: /srv/store/m/1/model.pt at 0x7ffd00112233\n\
            Exception raised from RAIIFile at /pytorch/caffe2/serialize/file_adapter.cc:27 (most recent call first):\nframe #0: c10::Error";
        let told = sentence(text);
        assert!(told.starts_with("open file failed"), "{told}");
        assert!(!told.contains('/') && !told.contains("0x") && !told.contains("raised"), "{told}");
    }

    #[test]
    fn it_is_short_and_never_empty() {
        assert!(sentence(&"é ".repeat(1000)).chars().count() <= 300);
        assert_eq!(sentence(" \n ~~~ <--- HERE\n"), "the library gave no reason");
    }
}
