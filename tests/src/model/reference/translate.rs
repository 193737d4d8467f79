// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where an access leads on the naive device, while a change is under way or not.

use super::{Effect, Reference};

/// Event reason: attached to nothing.
pub const REASON_DOMAIN: u8 = 1;
/// Event reason: nothing mapped, or not for this access.
pub const REASON_MAPPING: u8 = 2;

/// A guest-physical address and a length, or the address that is refused and the reason.
pub type Piece = Result<(u64, u64), (u64, u8)>;

impl Reference {
    /// The pieces of an access up to the first that is refused.
    pub fn translate(&self, endpoint: u32, iova: u64, length: u64, access: u32) -> Vec<Piece> {
        let mut at = u128::from(iova);
        let end = at + u128::from(length);
        let mut pieces = vec![];
        while at < end {
            let piece =
                if end > 1 << 64 { Err(REASON_MAPPING) } else { self.step(endpoint, at, end, access) };
            match piece {
                Ok((phys, length)) => {
                    pieces.push(Ok((phys as u64, length as u64)));
                    at += length;
                }
                Err(reason) => {
                    pieces.push(Err((at as u64, reason)));
                    break;
                }
            }
        }
        pieces
    }

    /// Where `at` leads, and how many bytes up to `end` lead on from there.
    fn step(&self, endpoint: u32, at: u128, end: u128, access: u32) -> Result<(u128, u128), u8> {
        let identity = Ok((at, end - at));
        let known = self.endpoint(endpoint).map_err(|_| REASON_DOMAIN)?;
        match (&self.under_way, known.domain) {
            (Some((Effect::Attach { endpoint: moving, .. } | Effect::Detach { endpoint: moving }, _)), _)
                if *moving == endpoint =>
            {
                Err(REASON_DOMAIN)
            }
            (Some((Effect::SetBypass(_), _)), None) => Err(REASON_DOMAIN),
            (_, None) if self.bypass => identity,
            (_, None) => Err(REASON_DOMAIN),
            (_, Some((_, true))) => identity,
            (Some((Effect::Unmap { domain, start, end }, _)), Some((id, _)))
                if *domain == id && *start <= at && at < *end =>
            {
                Err(REASON_MAPPING)
            }
            (_, Some((id, false))) => {
                let mut of_domain = self.mappings.iter().filter(|mapping| mapping.domain == id);
                let mapping = of_domain
                    .find(|mapping| mapping.start <= at && at < mapping.end)
                    .ok_or(REASON_MAPPING)?;
                if mapping.flags & access != access {
                    return Err(REASON_MAPPING);
                }
                Ok((mapping.phys + (at - mapping.start), mapping.end.min(end) - at))
            }
        }
    }
}
