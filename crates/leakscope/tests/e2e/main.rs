//! End-to-end tests: real programs under the real `leakscope`.
//!
//! One binary, since each further one would be linked again. The target programs are in `targets/` of the repository; what
//! must be reported of them stands beside their code. No test asserts how long something takes.

mod at_exit;
mod bad_input;
mod hazards_c;
mod hazards_cpp;
mod hazards_processes;
mod hazards_rust;
mod kill;
mod leak_shapes;
mod leaks_bad_input;
mod leaks_command;
mod leaks_core;
mod leaks_kill;
mod leaks_live;
mod leaks_over_time;
mod leaks_services;
mod oracle;
mod real_programs;
mod run_contract;
mod sampling;
mod support;
mod symbols;
