//! Parses the command line, calls the library, and turns the answer into an exit code.
fn main() {}
