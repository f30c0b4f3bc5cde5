//! Compiles the file system against the headers of the RocksDB that is linked.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

/// The struct of RocksDB's C API that `encrypted_env.cc` declares again: it is in no header.
const ENV: &str = "struct rocksdb_env_t {\n  Env* rep;\n  bool is_default;\n};";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=src/encrypted_env.cc");
    let sources = env::var("DEP_ROCKSDB_CARGO_MANIFEST_DIR")?;
    let sources = Path::new(&sources).join("rocksdb");
    if !fs::read_to_string(sources.join("db/c.cc"))?.contains(ENV) {
        return Err("RocksDB's rocksdb_env_t is not as encrypted_env.cc declares it".into());
    }
    let mut build = cc::Build::new();
    // As librocksdb-sys compiles RocksDB, whose classes are used here.
    build.cpp(true).std("c++20").define("NDEBUG", "1").define("HAVE_ALIGNED_NEW", None);
    build.flag("-include").flag("cstdint");
    // Its headers have parameters that it does not use.
    build.flag("-isystem").flag(sources.join("include").display().to_string());
    build.flag("-Wno-unused-parameter").file("src/encrypted_env.cc");
    build.try_compile("meridian_encrypted_env")?;
    Ok(())
}
