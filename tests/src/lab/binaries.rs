//! Where the programs under test are.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// Names a folder with `postern` and `postern-controller` in it, instead of the build's own.
pub const DIRECTORY_VARIABLE: &str = "POSTERN_BIN_DIR";

/// Finds a program of this workspace: in [`DIRECTORY_VARIABLE`], or where the running test was built.
///
/// # Errors
/// Fails, with the command that builds it, when it is not there.
pub fn find(name: &str) -> Result<PathBuf> {
    let mut places: Vec<PathBuf> = Vec::new();
    if let Some(directory) = std::env::var_os(DIRECTORY_VARIABLE) {
        places.push(directory.into());
    } else {
        let own = std::env::current_exe().context("the running program has no path")?;
        places.extend(own.ancestors().skip(1).take(3).map(PathBuf::from)); // deps/, then the profile's folder
    }
    for place in &places {
        let path = place.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    let package = match name {
        "postern" => "postern-node",
        "postern-controller" => "postern-controller",
        _ => "postern-tests",
    };
    bail!("`{name}` is not built: cargo build -p {package} (looked in {places:?})")
}
