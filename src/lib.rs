//! Sconce, a gRPC model-serving runtime.
//!
//! ```text
//!         gRPC · HTTP
//!              │
//!           server ──────────────────┐            the edge: protocols in and out
//!              │                     │
//!           engine                rollout         one request │ one change of traffic
//!              │                     │ writes route.yaml
//!              │                   store          what is on disk or in the bucket
//!              │ reads               │ tells
//!              │                 lifecycle        one version: aspired, loading, ready, draining, gone
//!              └────► catalog ◄──────┘ publishes
//!                        │
//!                     runtime                     a version at work: queue, batch, instance
//!                        │
//!                     backend                     one batch: onnx, torch, lightgbm
//! ```
//!
//! The life of a request: `server` decodes it into the words of `model`, `engine` loads the catalog once, binds the data to
//! the version's signature and hands the work to a `runtime` servable, whose batch a `backend` session runs.
//! The life of a change: `server` hands what an operator asks for to `rollout`, which replaces the model's route.yaml; the store
//! tells lifecycle, as it does when a person edits the file.
//! The life of a version: `store` finds it, `lifecycle` verifies, opens and warms it in a throw-away child, then in the
//! process, and publishes it with one store of one pointer.
//!
//! A module uses only modules below it in this list; `tests/tidy.rs` keeps that.

pub mod cli;
pub mod app;
pub mod config;
pub mod server;
pub mod rollout;
pub mod engine;
pub mod lifecycle;
pub mod store;
pub mod catalog;
pub mod runtime;
pub mod backend;
pub mod monitor;
pub mod model;
pub mod telemetry;
pub mod error;
