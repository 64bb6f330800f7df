//! The RingMQ broker.

#![deny(unsafe_code)]

pub mod control;
