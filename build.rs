//! Compiles `proto/` into Rust and into the descriptor set that reflection answers from. Needs no `protoc`.

use std::path::PathBuf;

use prost::Message;

const PROTOS: [&str; 5] = [
    "sconce/v1/inference.proto",
    "sconce/v1/admin.proto",
    "inference/grpc_predict_v2.proto",
    "google/rpc/error_details.proto",
    "google/rpc/status.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out_dir = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out_dir.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // Bytes instead of vectors, so that a raw tensor is a slice of the message and not a copy of it.
    // Maps of few entries, mostly none: an ordered one hashes nothing, and is written in one order.
    // Whoever includes the protocols says what they are decoded with: the server counts first, the bench's echo does not.
    tonic_prost_build::configure().bytes(".").btree_map(".").codec_path("super::Codec").compile_fds(descriptors)?;
    Ok(())
}
