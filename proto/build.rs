//! Generates `posthouse.v1` from the `.proto` files with protox, so that no `protoc` has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=posthouse");
    let files =
        ["posthouse/v1/admin.proto", "posthouse/v1/raft.proto", "posthouse/v1/front.proto", "posthouse/v1/peer.proto"];
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure()
        // Read answers are printed as JSON under their proto names; see posthousectl's `-o json`.
        .type_attribute(".", "#[derive(serde::Serialize)]")
        .compile_fds(descriptors)?;
    Ok(())
}
