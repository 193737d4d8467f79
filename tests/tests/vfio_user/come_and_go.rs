// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Servers that are taken away from behind an endpoint, and put there again, while the daemon runs.

use crate::bed::*;

#[test]
fn a_server_that_is_removed_has_nothing_and_one_that_is_added_has_what_the_guest_has_mapped() {
    for dma in ["shared", "message"] {
        let mut bed = Bed::with(&[dma], &[]);
        let (mut guest, vmm) = bed.run();
        bed.ctl(&["remove", "00:02.0"]).expect("removed");
        assert_ne!(bed.peek(0, IOVA), secret(), "{dma}");
        drop(vmm);
        bed.serve(0);
        // Nobody is to be told of this.
        guest.unmap(DOMAIN, IOVA, PAGE);
        guest.map(DOMAIN, 1 << 32, PAGE, SECRET.0);

        let [front, server] = [bed.front_path(0), bed.server_path(0)].map(|path| path.display().to_string());
        let spec = format!("00:02.0,vfio-user={front},server={server},dma={dma}");
        bed.ctl(&["add", &spec]).expect("added");
        let _vmm = bed.plug(0);
        assert_eq!(bed.peek(0, 1 << 32), secret(), "{dma}");
        assert!(is_refused(&bed.peek(0, IOVA)), "{dma}");
    }
}
