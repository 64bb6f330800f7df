//! Consumption: who owns which queue, and how far each group has come.

pub(crate) mod assignment;
pub(crate) mod group;
pub(crate) mod joining;
pub(crate) mod offsets;
pub(crate) mod retry;
