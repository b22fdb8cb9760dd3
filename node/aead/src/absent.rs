//! In place of `wide`, where this program has no code for several packets at once.
use crate::{
    TAG,
    group::{Group, LANES},
};

/// There is none.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wide {}

impl Wide {
    pub(crate) fn detect() -> Option<Self> {
        None
    }

    pub(crate) fn seal(self, _key: &[u32; 8], _group: &mut Group<'_>) -> [[u8; TAG]; LANES] {
        match self {}
    }

    pub(crate) fn open(self, _key: &[u32; 8], _group: &mut Group<'_>, _tags: &[[u8; TAG]; LANES]) -> [bool; LANES] {
        match self {}
    }
}
