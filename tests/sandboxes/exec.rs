//! `credproxy exec`.
