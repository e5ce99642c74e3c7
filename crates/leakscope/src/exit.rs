//! Exit statuses of leakscope itself, and how it tells of errors.

use std::io::Write;
use std::process::ExitCode;

/// Wrong usage.
pub const USAGE: u8 = 2;
/// leakscope could not do its work.
pub const FAILED: u8 = 125;
/// The command could not be run.
pub const NOT_EXECUTABLE: u8 = 126;
/// The command was not found.
pub const NOT_FOUND: u8 = 127;

/// Prints an error with its causes, and gives the status for it.
pub fn failed(error: &anyhow::Error) -> ExitCode {
    use leakscope_holder::Error;
    // A reader that went away (`leakscope report | head`) is no failure worth words.
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    say(&chain(error));
    ExitCode::from(match error.downcast_ref::<Error>() {
        Some(Error::NotFound { .. }) => NOT_FOUND,
        Some(Error::NotExecutable { .. }) => NOT_EXECUTABLE,
        _ => FAILED,
    })
}

/// Whether something could not be written since its reader went away.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// Prints a message to standard error. If that is closed or nobody reads it, the exit status has to do.
pub fn say(message: &str) {
    let _ = writeln!(std::io::stderr(), "leakscope: {message}");
}

/// An error and its causes. A cause that the message before it quotes already is not repeated.
pub fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    text
}
