// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The request numbers of both directions, open: a number without a name is carried and printed like any other.
//!
//! Nothing here says which payload or reply belongs to a request.
//!
//! Read first: "Front-end message types" and "Back-end message types" in `vhost-user.rst`.

use std::fmt;

/// Declares an open enumeration of request numbers that prints the protocol's name where there is one.
macro_rules! requests {
    ($(#[$doc:meta])* $type:ident { $($(#[$request_doc:meta])* $name:ident = $number:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $type(pub u32);

        impl $type {
            $($(#[$request_doc])* pub const $name: Self = Self($number);)*
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {
                    $(Self::$name => f.write_str(stringify!($name)),)*
                    Self(number) => write!(f, "request {number}"),
                }
            }
        }

        impl From<$type> for u32 {
            fn from(request: $type) -> u32 {
                request.0
            }
        }
    };
}

requests! {
    /// What a front-end (the VMM) asks of a back-end, on the main connection.
    FrontendRequest {
        /// Asks for the virtio and vhost feature bits that the back-end offers.
        GET_FEATURES = 1,
        /// Sets the feature bits that both sides use.
        SET_FEATURES = 2,
        /// Opens the session.
        SET_OWNER = 3,
        /// Deprecated: once ended the session.
        RESET_OWNER = 4,
        /// Replaces the memory table; one file descriptor for each region.
        SET_MEM_TABLE = 5,
        /// Gives the log of dirty pages.
        SET_LOG_BASE = 6,
        /// Gives an eventfd to signal writes to the log.
        SET_LOG_FD = 7,
        /// Sets a ring's size.
        SET_VRING_NUM = 8,
        /// Sets a ring's addresses.
        SET_VRING_ADDR = 9,
        /// Sets the available index a ring starts from.
        SET_VRING_BASE = 10,
        /// Stops a ring and asks for its next available index.
        GET_VRING_BASE = 11,
        /// Gives the eventfd that says buffers are available.
        SET_VRING_KICK = 12,
        /// Gives the eventfd that says buffers are used.
        SET_VRING_CALL = 13,
        /// Gives the eventfd that says a ring is broken.
        SET_VRING_ERR = 14,
        /// Asks for the protocol features that the back-end offers.
        GET_PROTOCOL_FEATURES = 15,
        /// Sets the protocol features that both sides use.
        SET_PROTOCOL_FEATURES = 16,
        /// Asks for the number of queues.
        GET_QUEUE_NUM = 17,
        /// Enables or disables a ring.
        SET_VRING_ENABLE = 18,
        /// Asks a network back-end to announce the guest.
        SEND_RARP = 19,
        /// Sets the MTU of a network back-end.
        NET_SET_MTU = 20,
        /// Gives the socket for the back-end's own requests.
        SET_BACKEND_REQ_FD = 21,
        /// Updates or invalidates the back-end's IOTLB.
        IOTLB_MSG = 22,
        /// Sets a ring's byte order, for legacy devices.
        SET_VRING_ENDIAN = 23,
        /// Reads device configuration space.
        GET_CONFIG = 24,
        /// Writes device configuration space.
        SET_CONFIG = 25,
        /// Creates a session of a crypto back-end.
        CREATE_CRYPTO_SESSION = 26,
        /// Closes a session of a crypto back-end.
        CLOSE_CRYPTO_SESSION = 27,
        /// Announces a postcopy migration.
        POSTCOPY_ADVISE = 28,
        /// Starts postcopy.
        POSTCOPY_LISTEN = 29,
        /// Ends postcopy.
        POSTCOPY_END = 30,
        /// Asks for the shared record of requests in flight.
        GET_INFLIGHT_FD = 31,
        /// Gives the shared record of requests in flight.
        SET_INFLIGHT_FD = 32,
        /// Gives the socket of the GPU protocol.
        GPU_SET_SOCKET = 33,
        /// Resets the device.
        RESET_DEVICE = 34,
        /// Says in band that buffers are available.
        VRING_KICK = 35,
        /// Asks how many memory regions the back-end can hold.
        GET_MAX_MEM_SLOTS = 36,
        /// Adds one memory region; one file descriptor.
        ADD_MEM_REG = 37,
        /// Removes one memory region.
        REM_MEM_REG = 38,
        /// Sets the virtio device status.
        SET_STATUS = 39,
        /// Asks for the virtio device status.
        GET_STATUS = 40,
        /// Asks for a shared object's file descriptor.
        GET_SHARED_OBJECT = 41,
        /// Gives the pipe over which the device's state is moved.
        SET_DEVICE_STATE_FD = 42,
        /// Asks how the move of the device's state went.
        CHECK_DEVICE_STATE = 43,
        /// Asks for the sizes of the shared memory regions.
        GET_SHMEM_CONFIG = 44,
    }
}

requests! {
    /// What a back-end asks of the front-end, on the connection that `SET_BACKEND_REQ_FD` opened.
    BackendRequest {
        /// Reports an IOTLB miss or a failed access.
        IOTLB_MSG = 1,
        /// Says that the device configuration space has changed.
        CONFIG_CHANGE_MSG = 2,
        /// Gives the area of a ring's host notifier.
        VRING_HOST_NOTIFIER_MSG = 3,
        /// Says in band that buffers are used.
        VRING_CALL = 4,
        /// Says in band that a ring is broken.
        VRING_ERR = 5,
        /// Publishes a shared object.
        SHARED_OBJECT_ADD = 6,
        /// Withdraws a shared object.
        SHARED_OBJECT_REMOVE = 7,
        /// Asks for a shared object.
        SHARED_OBJECT_LOOKUP = 8,
        /// Asks to map a file into a shared memory region.
        SHMEM_MAP = 9,
        /// Asks to unmap a part of a shared memory region.
        SHMEM_UNMAP = 10,
    }
}
