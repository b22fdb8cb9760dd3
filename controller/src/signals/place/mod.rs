//! Where an outer address is: country and autonomous system, from files that the operator gives.
//!
//! ```text
//! [place] in controller.toml --> files in MaxMind's format --> Maps --place_of(address)--> the decision's context
//! the file was replaced ------> read anew, swapped, everything decided again
//! ```
//!
//! Files of any vendor will do, as long as they hold `country.iso_code` or `autonomous_system_number`. They are read whole when the
//! controller starts and when they change; a look-up reads memory alone. A file that cannot be read at the start is a mistake; one
//! that breaks later keeps its predecessor, with a line in the log.
//!
//! Threats: an address is easily borrowed, so a place opens nothing by itself (the policy refuses such a rule). A file that is
//! wrong can only make places unknown or different; unknown satisfies every deny and no access.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use maxminddb::{Reader, path};
use postern_common::policy::{AutonomousSystem, Place};
use tokio::sync::watch;

use crate::serve::{actor::Handle, listener};

/// How often it is looked whether a file was replaced.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Which files there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlaceFiles {
    /// Countries, such as `GeoLite2-Country.mmdb`.
    pub country: Option<PathBuf>,
    /// Autonomous systems, such as `GeoLite2-ASN.mmdb`.
    pub asn: Option<PathBuf>,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be used as a map of addresses: {why}", path.display())]
pub struct MapError {
    path: PathBuf,
    why: String,
}

/// Tells where an address is.
pub trait Atlas: Send + Sync {
    /// Returns the place of an outer address; what is not known stays absent.
    fn place_of(&self, address: IpAddr) -> Place;
}

/// An atlas without maps: every place is unknown.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoMaps;

impl Atlas for NoMaps {
    fn place_of(&self, _address: IpAddr) -> Place {
        Place::default()
    }
}

/// The operator's maps, in memory.
pub struct Maps {
    country: Option<Reader<Vec<u8>>>,
    asn: Option<Reader<Vec<u8>>>,
    /// When the files were changed last, before they were read.
    pub(crate) seen: Seen,
}

/// When the files were changed last, as far as they are there.
pub(crate) type Seen = [Option<SystemTime>; 2];

impl Maps {
    /// Reads the files.
    ///
    /// # Errors
    /// [`MapError`], which names the file.
    pub fn read(files: &PlaceFiles) -> Result<Self, MapError> {
        let seen = changed(files);
        Ok(Self { country: read(files.country.as_deref())?, asn: read(files.asn.as_deref())?, seen })
    }
}

fn read(path: Option<&Path>) -> Result<Option<Reader<Vec<u8>>>, MapError> {
    let Some(path) = path else { return Ok(None) };
    let wrong = |why: String| MapError { path: path.to_owned(), why };
    let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    Reader::from_source(bytes).map(Some).map_err(|error| wrong(error.to_string()))
}

impl Atlas for Maps {
    fn place_of(&self, address: IpAddr) -> Place {
        let address = address.to_canonical(); // ::ffff:192.0.2.1 is 192.0.2.1
        // An entry that cannot be decoded is an entry that is not there.
        let country = self.country.as_ref().and_then(|map| {
            let code = map.lookup(address).ok()?.decode_path::<String>(&path!["country", "iso_code"]).ok()??;
            code.parse().ok()
        });
        let asn = self.asn.as_ref().and_then(|map| {
            let number = map.lookup(address).ok()?.decode_path::<u32>(&path!["autonomous_system_number"]).ok()??;
            Some(AutonomousSystem(number))
        });
        Place { country, asn }
    }
}

fn changed(files: &PlaceFiles) -> Seen {
    [&files.country, &files.asn].map(|file| {
        let metadata = std::fs::metadata(file.as_deref()?).ok()?;
        metadata.modified().ok()
    })
}

/// Gives the core new maps when a file is replaced since it was `seen`; returns when told to stop.
pub(crate) async fn keep_up(files: PlaceFiles, mut seen: Seen, handle: Handle, mut stop: watch::Receiver<bool>) {
    let mut next: Option<Maps> = None;
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        if let Some(maps) = next.take() {
            let atlas: Arc<dyn Atlas> = Arc::new(maps);
            if handle.call(move |turn, now| turn.core.set_atlas(atlas, now)).await.is_err() {
                return;
            }
        }
        tokio::select! {
            _ = look.tick() => {
                // Maps are a hundred megabytes: reading one here would keep the other tasks of this thread waiting.
                let asked = files.clone();
                let before = seen;
                let looked = tokio::task::spawn_blocking(move || {
                    let present = changed(&asked);
                    (present, (present != before).then(|| Maps::read(&asked)))
                });
                match looked.await {
                    Ok((present, read)) => {
                        seen = present;
                        match read {
                            Some(Ok(maps)) => next = Some(maps),
                            Some(Err(error)) => tracing::error!(%error, "the present map stays"),
                            None => {}
                        }
                    }
                    Err(error) => tracing::error!(%error, "the present map stays"),
                }
            }
            () = listener::told(&mut stop) => return,
        }
    }
}

#[cfg(test)]
mod tests;
