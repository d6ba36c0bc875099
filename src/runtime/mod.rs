//! A VERSION AT WORK: the servable with its queue, its batches and its instances.
//!
//! Knows backends and tensors; knows nothing of models' names beyond labels, of routes, of the store or of protocols.
//! `engine` calls `Servable::run`; `lifecycle` makes servables and drops them; `app` makes the cores.

mod cores;
mod servable;

pub use cores::Cores;
pub use servable::{Done, Servable, ServableConfig, Work};
