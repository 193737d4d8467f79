// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's state, taken out of one process and put into another while the guest stands still.

use std::iter;

use log::info;
use thiserror::Error;
use viommu_core::state::{SavedState, StateError};
use viommu_core::wire::BYPASS_OFFSET;
use viommu_core::{Mode, Reject};

use super::{Incoming, Iommu};

/// Why a state was not taken over. The device is then as after a reset.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The bytes are none.
    #[error(transparent)]
    Bytes(#[from] StateError),
    /// `bypass` cannot be what it was.
    #[error("bypass was {0} and cannot be set here; start both daemons with the same --boot-bypass")]
    Bypass(&'static str),
    /// This process was not started as the other one was.
    #[error("{request} of the state is refused here: {reject}; start both daemons with the same options")]
    Refused {
        /// What was to be done.
        request: &'static str,
        /// Why not.
        reject: Reject,
    },
}

impl Iommu {
    /// Whether the state of the device can be moved at all.
    pub fn is_movable(&self) -> bool {
        self.state().device().mode() == Mode::Map
    }

    /// The state of the device. It cannot be taken of one of tables.
    pub fn save(&self) -> Option<Vec<u8>> {
        let _turn = self.turn();
        self.state().device().save()
    }

    /// The most bytes that the state of this device can take.
    pub fn state_size_max(&self) -> usize {
        self.state().device().state_size_max()
    }

    /// Takes over the state of another device, in place of what the driver has set up here.
    ///
    /// # Errors
    /// The state is none, or does not fit this device or its host.
    pub fn load(&self, bytes: &[u8]) -> Result<(), LoadError> {
        let state = SavedState::parse(bytes)?;
        self.reset();
        self.negotiate(state.features);
        let loaded = self.set_up(&state);
        match &loaded {
            Ok(()) => info!("the state of another device was taken over"),
            Err(_) => self.reset(),
        }
        loaded
    }

    fn set_up(&self, state: &SavedState<'_>) -> Result<(), LoadError> {
        self.write_config(BYPASS_OFFSET, &[state.bypass.into()]);
        if self.state().device().bypass() != state.bypass {
            return Err(LoadError::Bypass(if state.bypass { "on" } else { "off" }));
        }
        state.requests().try_for_each(|request| self.repeat(request?))
    }

    fn repeat(&self, readable: &[u8]) -> Result<(), LoadError> {
        const TAIL_SIZE: usize = 4;
        let _turn = self.turn();
        let mut outcome = Ok(());
        self.answer(iter::once(Incoming { readable, writable: TAIL_SIZE }), &mut |reply| {
            if let (Some(row), Some(reject)) = (reply.row, reply.rejected.clone()) {
                outcome = Err(LoadError::Refused { request: row.name, reject });
            }
        });
        outcome
    }
}
