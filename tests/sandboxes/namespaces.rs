//! Real sandboxes.
