//! The integration tests: each module is named for what the server does, and starts the real one.

mod harness;
mod proto;
mod shell;

mod bad_input;
mod buckets;
mod clients;
mod commands;
mod damaged_artifacts;
mod devices;
mod edge_limits;
mod external_data;
mod faults_while_loading;
mod health_and_http;
mod holds_new_versions;
mod holds_up_no_core;
mod hot_swap;
mod joins_only_what_is_safe;
mod keeps_answers;
mod keeps_to_its_threads;
mod memory_comes_back;
mod names_who_ran_at_a_crash;
mod on_a_gpu;
mod opened_first_in_a_child;
mod operators;
mod outcomes;
mod overload;
mod pads_lengths;
mod pasted;
mod predicts;
mod rolls_out;
mod routes;
mod shares_traffic;
mod starts;
mod state;
mod store_changes;
