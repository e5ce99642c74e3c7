//! End-to-end tests: real programs under the real `leakscope`.
//!
//! One binary, since each further one would be linked again. The target programs are in `targets/` of the repository; what
//! must be reported of them stands beside their code. No test asserts how long something takes.

mod oracle;
mod support;
