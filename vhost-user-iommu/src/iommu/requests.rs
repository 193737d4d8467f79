// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests: one at a time, or several INVALIDATEs that the host is told of together.

use std::iter;

use viommu_core::wire::RequestType;
use viommu_core::{Change, Reject, Reply, Step};
use viommu_nested::shadow::OfDomain;

use crate::vfio::Vfio;

use super::Iommu;

/// A request that is not answered yet.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    /// Its readable part.
    pub readable: &'a [u8],
    /// Bytes of its writable part.
    pub writable: usize,
}

impl Iommu {
    /// Answers the first of these requests, and those right behind it that are done in one step with it: `give` gets their
    /// replies, in their order. The others are as if they had not been seen.
    pub fn requests<'a>(
        &self,
        requests: impl IntoIterator<Item = Incoming<'a>>,
        mut give: impl FnMut(&Reply),
    ) {
        let _turn = self.turn();
        self.answer(requests.into_iter(), &mut |reply| {
            self.take_note(reply);
            give(reply);
        });
    }

    fn take_note(&self, reply: &Reply) {
        self.account.count(reply);
        if reply.row.is_some_and(|row| row.kind == RequestType::PROBE) {
            self.tell_holes();
        }
        if let (Some(row), Some(reject)) = (reply.row, &reply.rejected) {
            self.refusals.log(|| format!("{} refused: {reject}{}", row.name, mend(reject)));
        }
    }

    /// The same in this turn, and of no account.
    pub(super) fn answer<'a>(
        &self,
        mut requests: impl Iterator<Item = Incoming<'a>>,
        give: &mut impl FnMut(&Reply),
    ) {
        let Some(first) = requests.next() else { return };
        let step = self.state().begin(first.readable, first.writable);
        match (step, &self.vfio) {
            (Step::Done(reply), _) => give(&reply),
            (Step::Apply(Change::Invalidate { domain, invalidation }), Some(vfio)) => {
                self.invalidate_together(vfio, (domain, invalidation), requests, give);
            }
            (Step::Apply(change), _) => give(&self.carry_out(&change)),
        }
    }

    /// The first of these is begun. The address spaces take of the others as many as they can make one step of.
    fn invalidate_together<'a>(
        &self,
        vfio: &Vfio,
        first: OfDomain,
        mut behind: impl Iterator<Item = Incoming<'a>>,
        give: &mut impl FnMut(&Reply),
    ) {
        // Those that are not done, and before how many that are.
        let (mut refused, mut begun) = (Vec::new(), 1);
        let others = iter::from_fn(|| {
            loop {
                let Incoming { readable, writable } = behind.next()?;
                match self.state().device_mut().begin_another(readable, writable)? {
                    Step::Done(reply) => refused.push((begun, reply)),
                    Step::Apply(change) => {
                        let Change::Invalidate { domain, invalidation } = change else { return None };
                        begun += 1;
                        return Some((domain, invalidation));
                    }
                }
            }
        });
        let outcomes = vfio.shadow().invalidate_together(iter::once(first).chain(others));
        let mut refused = refused.into_iter().peekable();
        for number in 0..outcomes.count() {
            let outcome = self.of_host(outcomes.of(number));
            let reply = self.state().device_mut().finish(outcome);
            give(&reply);
            while let Some((_, reply)) = refused.next_if(|(before, _)| *before == number + 1) {
                give(&reply);
            }
        }
        self.pass_answers_on();
    }
}

/// What the user can do about a refusal, where it is not the guest's own matter.
fn mend(reject: &Reject) -> &'static str {
    match reject {
        Reject::NoEndpoint(_) => "; the guest's VIOT names it, so name it as --endpoint too, or in neither",
        Reject::DomainLimit(_) => "; see --max-domains",
        Reject::MappingLimit(_) => "; see --max-mappings",
        Reject::MappingMemory(_) => "; see --max-mapping-memory",
        _ => "",
    }
}
