//! Whether two versions differ: tests for a report, tests that may be looked at all the time, and the sums they need.
//! Pure: numbers in, numbers out. It knows nothing of routes, thresholds or what follows from a result; the judge asks
//! it.

pub mod fixed;
pub mod sequential;
mod special;
pub mod strata;

#[cfg(test)]
pub mod golden;
#[cfg(test)]
mod simulations;
