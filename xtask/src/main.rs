//! Tasks of the project: set-up, builds, tests, the lab and the demonstration.

fn main() {}
