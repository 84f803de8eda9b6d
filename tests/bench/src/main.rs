//! Nanoseconds per packet of the loaded program.

fn main() {}
