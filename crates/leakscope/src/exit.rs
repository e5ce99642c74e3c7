//! Exit statuses of leakscope itself.

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
    let broken_pipe = error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    });
    if broken_pipe {
        return ExitCode::SUCCESS;
    }
    eprintln!("leakscope: {error:#}");
    ExitCode::from(match error.downcast_ref::<Error>() {
        Some(Error::NotFound { .. }) => NOT_FOUND,
        Some(Error::NotExecutable { .. }) => NOT_EXECUTABLE,
        _ => FAILED,
    })
}
