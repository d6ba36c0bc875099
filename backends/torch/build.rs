//! Compiles `src/gpu.cpp` against the libtorch that torch-sys was built with.

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=src/gpu.cpp");
    let lib = PathBuf::from(std::env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch is"));
    let include = lib.parent().unwrap_or(Path::new("/")).join("include");
    cc::Build::new()
        .cpp(true)
        .pic(true)
        .warnings(false)
        .std("c++17")
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file("src/gpu.cpp")
        .compile("sconce_gpu");
}
