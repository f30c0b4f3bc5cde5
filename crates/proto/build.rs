//! Compiles `/proto` with protox, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = "../../proto";
    let files = [
        "kv_connect.proto",
        "log.proto",
        "raft.proto",
        "shard.proto",
        "queue.proto",
        "shipping.proto",
        "admin.proto",
        "directory.proto",
        "changes.proto",
    ];
    println!("cargo:rerun-if-changed={root}");
    let descriptors = protox::compile(files, [root])?;
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::codec::ChecksumCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
