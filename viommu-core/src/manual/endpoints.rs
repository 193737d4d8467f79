// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How endpoints are enforced, and what they reach when the IOMMU itself is reset or gone.
//!
//! # vhost-user endpoints
//!
//! A relay listens where the VMM looks for the device's back-end, and connects to the real one for each VMM that
//! comes. It passes everything on, with these exceptions:
//!
//! - The back-end is told `VIRTIO_F_ACCESS_PLATFORM`, which makes it translate every address through its IOTLB. QEMU
//!   demands that bit of the back-end when the device has `iommu_platform=on`, and then takes it away again, since it
//!   knows of no IOMMU.
//! - The back-end's misses come to the relay, which answers from the device: first the entry, then the answer to the
//!   miss, waiting for nothing. Addresses in the entries are the VMM's: keys into the memory table that the back-end has
//!   too. An entry allows what the mapping allows. A miss that asks to read and to write is granted both where the
//!   mapping allows to write alone, which virtio leaves open: DPDK asks so for buffers that it only writes to, and has
//!   no use for an entry with less.
//! - The ring addresses that the VMM sends are its own addresses of the GPAs that it takes the guest's IOVAs for. As
//!   long as every IOVA is also a GPA, that can be undone exactly: so the aperture has to lie inside guest memory
//!   (`--guest-memory`), and the holes of that are reserved regions.
//! - Protocol features that would move memory, addresses or file descriptors past the relay stay hidden.
//!
//! ## Network interfaces that DPDK serves
//!
//! Ports of DPDK's vhost driver translate when they have `iommu-support=1`. README has the command lines; this is why
//! they are so. Tried with testpmd of DPDK 24.11, QEMU 11.1 and Linux 7.3 in the guest, unmapping strictly and in
//! bypass.
//!
//! - **No control queue**: `ctrl_vq=off`, and off what needs one (`ctrl_rx`, `ctrl_vlan`, `ctrl_mac_addr`,
//!   `guest_announce`). QEMU serves that queue itself, and takes IOVAs for GPAs: a guest that has one waits for its
//!   first answer for ever, and QEMU reads and writes what the guest never meant. Nothing in vhost-user tells the
//!   relay of it. Without that queue there is one pair of data queues.
//! - **Queues of 256.** DPDK takes entries that follow each other for one piece of memory. What lies in two mappings,
//!   as in two pages apart, leads it to memory behind the first, mapped or not. Linux maps a buffer in one piece, but
//!   a ring page by page: with `rx_queue_size` and `tx_queue_size` at QEMU's 256 every part of a ring is one page,
//!   with 1024 (`iommu.strict=1`) the interface stopped at descriptors that were none. A driver that means to can
//!   reach more by this than it has mapped, with any IOMMU: where that matters, DPDK is not the back-end to use.
//! - **Checksums** are a matter of who forwards: testpmd computes none, hence `csum=off,guest_csum=off`.
//! - **Packets wait for their entries.** DPDK does not take a packet for the guest while it has no entry for the
//!   buffer, and asks for it. Who sends the packet has to try again: testpmd drops it unless it is told `set fwd io
//!   retry` and, say, `set burst tx delay 20 retry 10000`.
//! - **A refused miss is final.** DPDK asks once for an address, until it gets an entry there or the rings stop. Only
//!   a driver that has unmapped what it gave to the device comes to feel that.
//! - **DPDK may end and come back**, when QEMU is told to connect again (`reconnect-ms` of the chardev). Meanwhile
//!   the link is down and the IOMMU goes on. QEMU cannot know where the rings stood; DPDK takes that from the used
//!   rings, so packets may be lost or sent twice. One that was killed leaves its sockets behind, and they have to be
//!   removed before the next one starts.
//! - **Who listens.** The relay connects to the back-end, so it is DPDK that listens: no `client=1`. Of Open
//!   vSwitch's vhost-user ports only those of type `dpdkvhostuserclient` translate, and these connect themselves. A
//!   port of type `dpdk` with `options:dpdk-devargs=net_vhost0,iface=PATH,iommu-support=1` should do; it was not
//!   tried.
//!
//! # vfio-user endpoints
//!
//! A relay listens where the VMM looks for the device's server (`vfio-user=`), and connects to the real one (`server=`).
//! What has to do with the device passes: regions, interrupts, resets, with their file descriptors. What has to do with
//! memory ends at the relay. The VMM's DMA_MAP and DMA_UNMAP say which guest memory there is for this device, at GPAs; at
//! most 1024 regions are kept. In their place the server gets mappings of IOVAs, as follows.
//!
//! | the guest's               | with `dma=shared`                                   | with `dma=message`              |
//! |---------------------------|-----------------------------------------------------|---------------------------------|
//! | MAP                       | DMA_MAP with the memory's file, offset and rights   | nothing                         |
//! | UNMAP                     | DMA_UNMAP, for each mapping that the server has     | nothing; no access is under way |
//! | ATTACH                    | DMA_UNMAP of what differs, DMA_MAP of what is new   | nothing; the same               |
//! | bypass domain, bypass     | DMA_MAP of each region of the VMM                   | nothing                         |
//! | an access                 | is the server's own                                 | DMA_READ or DMA_WRITE, checked  |
//! | a refused access          | only where the server asks by a message: an event   | an event                        |
//!
//! **Shared memory.** A request waits until the server has acknowledged what it is told: what succeeds is done. A server
//! holds 65535 mappings, or fewer if it says so in its `max_dma_maps`; a MAP or ATTACH that needs more is refused with
//! NOMEM. Whoever has the file of guest memory can map all of it, and to write where the mapping is to be read only: the
//! protocol hands over whole files, and no mapping of another process can be taken back. So the server is trusted to keep
//! to what it is told.
//!
//! **Messages.** The server gets no file. At the start it is told, without one, that it may ask for all of the aperture
//! and of memory: that is what libraries need to ask at all. One of libvfio-user takes 8 TiB by default: give it
//! `--aperture 0-0x7ffffffffff`. Each access, of 1 MiB at most, is translated when it comes, page by page. It is done as a
//! whole or, if a part of it is not allowed or no memory is there, refused as a whole, and the guest gets an event. Rights
//! are kept exactly, and no request of the guest waits for the server. The memory is that of the VMM's DMA_MAP: the memory
//! table of the IOMMU's own session comes only when the guest's driver starts, which is after the firmware. Memory that the
//! VMM gives without a file (QEMU: ROM) is not reached by messages.
//!
//! **The version.** The relay answers for memory: it takes 32 file descriptors and 1 MiB of data in a message. Of the
//! server's capabilities the VMM gets `max_msg_fds`, `max_data_xfer_size` and `write_multiple`. `twin_socket` and
//! `migration` are not proposed, and DEVICE_FEATURE is refused: dirty pages would be those of IOVAs. A server whose
//! `pgsizes` are above the granule refuses small mappings (SPDK takes 2 MiB and up); the log names `--granule`.
//!
//! **Life.** The device comes to life when the VMM connects, when it is reset, and when it becomes a bus master by its
//! command register, which is what firmware and drivers do first.
//!
//! # Physical devices
//!
//! The VMM and the daemon have the same files open: `/dev/iommu`, and the VFIO cdev of each device. `launch` opens them
//! for both; whoever starts the two otherwise passes duplicates (`--iommufd`, `vfio=fd:N`). The VMM binds its devices to
//! the iommufd context and attaches them to an address space of its own, with all of the guest's memory at IOVA = GPA.
//! That is what *bypass* is until the guest's driver sends its first ATTACH. From then on the daemon attaches them; the
//! kernel replaces one attachment by the other in one step.
//!
//! | the guest's                  | in the host                                                              |
//! |------------------------------|--------------------------------------------------------------------------|
//! | memory                       | one address space (IOAS), shared by all devices, at IOVA = GPA            |
//! | domain with a device in it   | an IOAS; a device that enters a domain with mappings gets them all        |
//! | MAP                          | `IOMMU_IOAS_COPY` out of the memory's: no page is pinned or charged twice |
//! | UNMAP                        | `IOMMU_IOAS_UNMAP`, once the device has checked that no mapping is cut    |
//! | bypass domain, bypass        | the memory's IOAS                                                         |
//! | unattached without bypass    | `VFIO_DEVICE_DETACH_IOMMUFD_PT`: all DMA is refused                       |
//!
//! **Memory.** The memory's IOAS is filled by copies of what the VMM has mapped for itself, which needs no right to lock
//! memory; where the VMM has not, from the files of the memory table, which does (`ulimit -l`). What is mapped anywhere
//! is pinned once, whatever the number of devices. Memory that the VMM takes away is unmapped from the memory's IOAS;
//! what a domain maps of it stays pinned until the guest unmaps it, so no DMA ever reaches a page that is used anew.
//!
//! **IOVAs.** What the host's IOMMU does not translate, or reserves, is known before the guest asks: each device is bound
//! to a context of the daemon's own for a moment at the start, and sysfs tells the rest. The aperture is narrowed to
//! what all devices can have, and holes in it are reserved regions. The region for interrupts is the host's: on Arm it
//! covers the doorbell of QEMU's `virt` machine as well (0x8000000-0x80fffff), on x86 it is 0xfee00000-0xfeefffff.
//! Another machine's doorbell is named with `--msi-region`.
//!
//! **MMIO.** A mapping with the MMIO flag that leads to the doorbell is kept and not given to the host, which routes
//! interrupts by itself. One that leads to another device's memory is given to the host if the VMM has mapped that
//! memory in its own address space, and refused if not.
//!
//! **Rights.** Read-only mappings are read-only in the hardware's tables. A write-only mapping is so where the table's
//! format can say it: an SMMUv3's stage 2 and a VT-d second-stage table can; the stage-1 tables that Linux makes for an
//! SMMUv3 without nesting cannot, and reads pass there, as virtio allows. A mapping that allows nothing is not given to
//! the host.
//!
//! **Groups.** Devices that the host's IOMMU cannot tell apart (an IOMMU group) can only be in one domain. An ATTACH
//! that would separate them is refused with UNSUPP. While one of them is in a domain, all of them reach that.
//!
//! **Faults.** The kernel tells nobody but its own log (`dmesg`) of DMA that such an address space refuses, so the guest
//! gets no event for it.
//!
//! # When the IOMMU is reset
//!
//! A guest that shuts down or reboots resets its IOMMU before its disks, which may be writing still. So a reset
//! empties the device at once, but an endpoint that was attached *lingers*: it keeps its last address space until it
//! is attached again, or restarts itself (its rings are set up anew; a vfio-user device: see above). Until then its IOVAs are never taken for GPAs. A
//! second reset that leaves others lingering ends that, too: the endpoint is blocked then. So the address spaces of one
//! reset can be held beside those that the limits allow, and no more.
//!
//! A VMM does not say whether it stops the device's rings for a reset or for a pause. The device stays as it is then.
//! If the rings go on where they were, it was a pause; if they start anew, or an endpoint comes to life, it was a
//! reset. A reset that the VMM does announce (RESET_DEVICE) counts at once.
//!
//! The same holds for physical devices, but nobody tells when they are reset or restarted. So while the rings are
//! stopped, and while a device lingers, the daemon looks at its bus mastering every few milliseconds. Once that is off,
//! the device does no DMA: its driver has shut it down, or the machine has been reset. It then has what unattached
//! endpoints have, and firmware finds its disks. Should the guest go on after a pause, the device is back in its domain
//! before the first request is served. With QEMU, name the IOMMU before the devices on the command line: QEMU resets
//! them in the reverse order, so the devices are quiet first.
//!
//! # When the VMM is gone
//!
//! Physical devices reach nothing, and the daemon lets go of its duplicates and ends: the kernel binds an open device
//! file once, so no other VMM could be given the same ones. A daemon that is told to end does the same first. One that
//! is killed leaves the devices attached to what they were, with their mappings, until the VMM ends, too.
//!
//! Endpoints are blocked: nothing translates, and back-ends are told to forget what they have. A VMM that connects is
//! taken for a machine at power-on, with `bypass` as at boot. An endpoint that was running meanwhile stays blocked
//! until it restarts.
//!
//! # When a back-end misbehaves
//!
//! If an invalidation is not acknowledged in time (`--unmap-timeout`), the guest's request fails with DEVERR, the
//! mapping stays, and the log says so: Linux does not look at the status of an UNMAP, so whoever runs the guest should
//! look at the log. Until that back-end answers, further requests that need it fail at once. A back-end that
//! disconnects has nothing cached any more; the VMM loses the device.
//!
//! A vfio-user server that maps memory is told, too, and has as long for each answer. One that gives none, or a wrong one,
//! or says what no server says, is *blocked*: both its connections end, and it is told of nothing more. The request at
//! hand fails with DEVERR, at most twice `--unmap-timeout` after it came, the second time being for what others were told
//! of it. While a blocked server has not closed its connection, it counts as holding what it was last told: an UNMAP of
//! that fails at once, other requests go on without it. A MAP that it refuses fails for the whole domain; it is not blocked
//! for that. A server that asks by messages can delay nobody.
//!
//! When the VMM leaves a device, its back-end counts as holding what it has cached until it has closed its connection
//! too. One that stays makes requests that need it fail, and no other VMM gets the device: end it.
//!
//! # Devices that come and go
//!
//! The endpoints are those that the daemon was given at the start, since a guest learns of them when it boots. What stands
//! behind one can change, through the control socket: `add` puts a device behind an endpoint that has none, `remove` takes
//! it away. For the device of another process, `add` makes the socket that the VMM connects to. `remove` ends both its
//! connections, so the VMM should have unplugged it, and answers when the back-end has left: it has nothing of the guest's
//! memory then. A back-end that stays longer than `--unmap-timeout` keeps its endpoint, which `list` tells, until it is
//! ended and `remove` is said again. What the guest has asked of the endpoint goes on: the next device is where the
//! endpoint is attached. A guest asks for the reserved regions when it finds a device, which is after `add`.
//!
//! # Endpoints that the operator blocks
//!
//! Through the control socket (`--control`) whoever runs the machine can `block` an endpoint: from then on each of its
//! accesses is refused; what a relay sees of them is reported to the guest as that of an endpoint in no domain. Its back-end
//! is told to forget everything, a server that maps memory to unmap it, and a physical device is detached, with all of its
//! IOMMU group. The reply says that this is so. It is an error if the back-end has not acknowledged it within `--unmap-timeout`: the endpoint
//! is blocked then, too, but may still use memory that it had. Ask again, or end the back-end; a server that maps memory
//! has lost its connections.
//!
//! The guest does not notice but by the faults: it maps, unmaps and attaches as before, and what it is refused is what it
//! would be refused anyway. A reset, another boot and another VMM change nothing, and a device that `add` puts behind the
//! endpoint is blocked, too. `unblock` gives the endpoint what it would have without: the mappings of its domain as they are
//! by then, or what lingers. A driver or a back-end that has given up meanwhile has to be restarted, as after any error of
//! its device.
//!
//! A physical device is looked at until half a second after the VMM has bound it. A VMM that attaches it by itself later
//! than that, as none is known to do, undoes the block.
//!
//! The state of the device does not hold any of this: a daemon that takes it over is told by its own operator.
//!
//! `list` shows an endpoint that reaches nothing as `blocked`, with a reason where that is not the guest's word:
//!
//! | code       |                                                                                            |
//! |------------|--------------------------------------------------------------------------------------------|
//! | `operator` | the command `block`                                                                        |
//! | `back-end` | the relay carries nothing: the message is that of the log, until a VMM connects to it anew |
//! | `no-vmm`   | no VMM is connected                                                                        |
//! | `restart`  | nobody knows what its addresses mean, until it restarts or is attached                     |
