//! The rows of the table, by what is measured together.

pub(crate) mod accounts;
pub(crate) mod idle;
pub(crate) mod instructions;
pub(crate) mod joined;
pub(crate) mod refreshes;
pub(crate) mod saves;
pub(crate) mod warm;
