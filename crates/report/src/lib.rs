//! Renders a profile: text, JSON, pprof, folded stacks, flame graph.
